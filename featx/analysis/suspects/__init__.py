"""Which images of a data set deserve a second look: labels, duplicates, outliers, poor photographs."""

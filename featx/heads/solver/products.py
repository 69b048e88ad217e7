"""Products of rows with each other, kept for problems that ask for nearly the same rows again and again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featx.heads.solver.spaces import add_products

_SPARE = 1.5  # how much larger than it must be a store is made


@dataclass
class _Store:
    """Attributes:

    rows: (m,) ascending.
    place: (m,) where each of them is in `products`.
    products: (capacity, capacity); its first m rows and columns are filled.
    """

    rows: Tensor
    place: Tensor
    products: Tensor


class KeptProducts:
    """Products Z_I Z_I^T of some rows I of features, those asked for before from memory.

    What is short of its margin changes by a few images from one Newton step to the next, from one fold to another and
    from one C to the next, so most of what is asked for is there.
    """

    def __init__(self, values: Tensor, memory_bytes: int) -> None:
        """Args:

        values: (n, D).
        memory_bytes: for all that is kept; what was not asked for lately is dropped first.
        """
        self._values = values
        self._capacity = memory_bytes // values.itemsize
        self._stores: dict[int, _Store] = {}

    def of(self, key: int, rows: Tensor) -> Tensor:
        """(m, m) for rows (m,), ascending; the caller may change it.

        Args:
            key: problems of the same one are expected to ask for the same rows.
        """
        if len(rows) ** 2 > self._capacity or not len(rows):
            return self._made(rows)
        store = self._stores.pop(key, None)
        if store is None:
            store = self._begun(rows)
        else:
            known = torch.isin(rows, store.rows, assume_unique=True)
            if not bool(known.all()):
                store = self._grown(store, rows, rows[~known])
        self._stores[key] = store  # the last one now
        while sum(one.products.numel() for one in self._stores.values()) > self._capacity and len(self._stores) > 1:
            self._stores.pop(next(iter(self._stores)))
        place = store.place[torch.searchsorted(store.rows, rows)]
        return store.products.index_select(0, place).index_select(1, place)

    def _made(self, rows: Tensor) -> Tensor:
        values = self._values.index_select(0, rows)
        products = values.new_zeros(len(rows), len(rows))
        add_products(products, values)
        return products

    def _begun(self, rows: Tensor) -> _Store:
        return _Store(rows, torch.arange(len(rows), device=rows.device), self._made(rows))

    def _grown(self, store: _Store, rows: Tensor, new: Tensor) -> _Store:
        old, size = len(store.rows), len(store.rows) + len(new)
        if size**2 > self._capacity:
            return self._begun(rows)  # what is there of other rows is in the way
        if size > len(store.products):
            wide = min(int(size * _SPARE), int(self._capacity**0.5))
            products = store.products.new_empty(wide, wide)
            products[:old, :old] = store.products[:old, :old]
            store.products = products
        by_place = torch.empty_like(store.rows)
        by_place[store.place] = store.rows
        added = self._values.index_select(0, new)
        mixed = added @ self._values.index_select(0, by_place).T
        store.products[old:size, :old] = mixed
        store.products[:old, old:size] = mixed.T
        store.products[old:size, old:size] = added @ added.T
        order = torch.argsort(torch.cat([store.rows, new]))
        store.rows = torch.cat([store.rows, new])[order]
        store.place = torch.cat([store.place, torch.arange(old, size, device=new.device)])[order]
        return store

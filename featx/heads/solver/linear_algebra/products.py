"""Products of rows with each other, kept for problems that ask for nearly the same rows again and again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from featx.heads.solver.linear_algebra.matmul import add_squares, complete, multiply

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


class ProductCache:
    """Products Z_I Z_I^T of some rows I of features, those asked for before from memory.

    What is short of its margin changes by a few images from one Newton step to the next, from one fold to another and
    from one C to the next, so most of what is asked for is there.
    """

    def __init__(self, values: Tensor, memory_bytes: int) -> None:
        """Args:

        values: (n, D).
        memory_bytes: for all that is kept; when it is full, other keys' products are made each time.
        """
        self._values = values
        self._capacity = memory_bytes // values.itemsize
        self._stores: dict[int, _Store] = {}

    def of(self, key: int, rows: Tensor) -> Tensor:
        """(m, m) for rows (m,), ascending; the caller may change it.

        Args:
            key: problems of the same one are expected to ask for the same rows.
        """
        if not len(rows):
            return self._made(rows)
        store = self._stores.pop(key, None)
        room = self._capacity - sum(one.products.numel() for one in self._stores.values())
        if store is not None:
            known = torch.isin(rows, store.rows, assume_unique=True)
            if not bool(known.all()):
                store = self._grown(store, rows, rows[~known], room)
        elif len(rows) ** 2 <= room:
            store = _Store(rows, torch.arange(len(rows), device=rows.device), self._made(rows))
        if store is None:  # who was first stays: whoever comes around in turns would find nothing otherwise
            return self._made(rows)
        self._stores[key] = store
        place = store.place[torch.searchsorted(store.rows, rows)]
        return store.products.index_select(0, place).index_select(1, place)

    def _made(self, rows: Tensor) -> Tensor:
        values = self._values.index_select(0, rows)
        products = values.new_zeros(len(rows), len(rows))
        add_squares(products, values)
        complete(products)
        return products

    def holds(self, key: int) -> bool:
        """Whether most of what is asked for under this key can be expected to be there."""
        return key in self._stores

    def _grown(self, store: _Store, rows: Tensor, new: Tensor, room: int) -> _Store | None:
        """With the products of more rows; started again if it has too many others, None if those are too many."""
        old, size = len(store.rows), len(store.rows) + len(new)
        if size**2 > room:
            if len(rows) ** 2 > room:
                return None
            return _Store(rows, torch.arange(len(rows), device=rows.device), self._made(rows))
        if size > len(store.products):
            wide = min(int(size * _SPARE), math.isqrt(room))
            products = store.products.new_empty(wide, wide)
            products[:old, :old] = store.products[:old, :old]
            store.products = products
        by_place = torch.empty_like(store.rows)
        by_place[store.place] = store.rows
        added = self._values.index_select(0, new)
        mixed = multiply(added, self._values.index_select(0, by_place).T)
        store.products[old:size, :old] = mixed
        store.products[:old, old:size] = mixed.T
        store.products[old:size, old:size] = multiply(added, added.T)
        order = torch.argsort(torch.cat([store.rows, new]))
        store.rows = torch.cat([store.rows, new])[order]
        store.place = torch.cat([store.place, torch.arange(old, size, device=new.device)])[order]
        return store

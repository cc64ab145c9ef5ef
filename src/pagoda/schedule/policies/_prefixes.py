"""Which requests begin alike: a tree over the prompts of all that are here, waiting and running.

An edge is a block of ``block`` tokens, so a node is a beginning that at least one prompt has, and the path to a
request's node names all that it shares with others. The tree says what will be worth sharing; what the cache really
holds, the memory says (``SchedulingPolicy.bind``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..item import Item


class Node:
    """A beginning of ``depth`` blocks.

    number    nodes count up as they are made
    is_warm   a request that begins so was admitted, and nobody has seen its pages gone since; so are the nodes above
    leader    the last one admitted, as long as it runs
    weight    the policy's
    """

    __slots__ = ("children", "depth", "edge", "is_warm", "items", "leader", "num_items", "number", "parent", "weight")

    def __init__(self, parent: Node | None, edge: tuple[int, ...], number: int) -> None:
        self.parent, self.edge, self.number = parent, edge, number
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[tuple[int, ...], Node] = {}
        self.items: dict[int, Item] = {}  # those that end here
        self.num_items = 0  # here and below
        self.is_warm = False
        self.leader: Item | None = None
        self.weight = 0.0

    def below(self, without: Node | None = None) -> Iterator[Item]:
        """All items that begin so, but those below ``without``."""
        nodes = [self]
        while nodes:
            node = nodes.pop()
            yield from node.items.values()
            nodes.extend(child for child in node.children.values() if child is not without)


class PromptTree:
    """Insertion costs O(length of the prompt); a node leaves with the last request that begins so."""

    def __init__(self, block: int) -> None:
        self.block, self._next = block, 0
        self._roots: dict[str, Node] = {}
        self._of: dict[int, Node] = {}

    def add(self, item: Item) -> Node:
        """The item's node; its last token is left out, since one is always computed."""
        node = self._roots.get(item.salt) or self._roots.setdefault(item.salt, self._node(None, ()))
        node.num_items += 1
        whole = (len(item.prompt) - 1) // self.block * self.block
        for start in range(0, whole, self.block):
            edge = tuple(item.prompt[start : start + self.block])
            child = node.children.get(edge)
            if child is None:
                child = node.children[edge] = self._node(node, edge)
            child.num_items += 1
            node = child
        node.items[item.seq_id] = item
        self._of[item.seq_id] = node
        return node

    def _node(self, parent: Node | None, edge: tuple[int, ...]) -> Node:
        self._next += 1
        return Node(parent, edge, self._next)

    def remove(self, item: Item) -> None:
        node: Node | None = self._of.pop(item.seq_id)
        assert node is not None
        del node.items[item.seq_id]
        while node is not None:
            node.num_items -= 1
            if node.leader is item:
                node.leader = None
            parent = node.parent
            if not node.num_items:
                if parent is not None:
                    del parent.children[node.edge]
                else:
                    del self._roots[item.salt]
            node = parent

    def up(self, item: Item) -> Iterator[Node]:
        """From the item's node to the child of the root."""
        node = self._of[item.seq_id]
        while node.parent is not None:
            yield node
            node = node.parent

    def holds(self, item: Item) -> bool:
        """Whether the item is here."""
        return item.seq_id in self._of

    def num_tokens(self, node: Node) -> int:
        """Prompt tokens of all below the node, what is shared counted once."""
        nodes, tokens = [node], node.depth * self.block
        while nodes:
            inner = nodes.pop()
            tokens += sum(len(item.prompt) - inner.depth * self.block for item in inner.items.values())
            tokens += self.block * len(inner.children)
            nodes.extend(inner.children.values())
        return tokens

    def group(self, item: Item) -> Node:
        """The node of the item's first block (the item's own where its prompt is shorter than that)."""
        node = self._of[item.seq_id]
        while node.parent is not None and node.parent.parent is not None:
            node = node.parent
        return node

    def lead(self, item: Item) -> list[tuple[Node, Item]]:
        """The item was admitted. Returns (deepest common node, other) for the others that have more in common with it
        than with anybody before; each beginning is told once while it stays warm.
        """
        found, inner = list[tuple[Node, Item]](), None
        for node in self.up(item):
            if not node.is_warm:
                found += [(node, other) for other in node.below(inner) if other is not item]
            node.is_warm, node.leader, inner = True, item, node
        return found

    def retreat(self, item: Item) -> None:
        """The item was preempted: it computes nothing any more."""
        for node in self.up(item):
            if node.leader is item:
                node.leader = None

    def chill(self, item: Item, num_tokens: int) -> None:
        """No more than ``num_tokens`` of the item are cached after all."""
        for node in self.up(item):
            if node.depth * self.block > num_tokens and node.leader is None:
                node.is_warm = False

    def warm_tokens(self, item: Item) -> int:
        """Tokens at the item's beginning that somebody here has computed, or will have soon."""
        return next((node.depth * self.block for node in self.up(item) if node.is_warm), 0)

    def why_later(self, item: Item, cached_tokens: Callable[[Item], int]) -> str:
        """The reason to hold an item whose beginning is being computed just now: with it, it need not be computed
        again. Asks for what is cached only where somebody computes at all.
        """
        leader = self.leader_at(item, 0) and self.leader_at(item, cached_tokens(item))
        return "" if leader is None else f"its beginning is being computed for sequence {leader.seq_id}"

    def leader_at(self, item: Item, num_cached: int) -> Item | None:
        """Who is computing just now what the item begins with beyond the ``num_cached`` tokens that are there."""
        for node in self.up(item):
            end, leader = node.depth * self.block, node.leader
            if end <= num_cached:
                break
            if leader is not None and leader is not item and leader.num_computed < end:
                return leader
        return None

package audit

import (
	"context"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// MaxSize is the most records of a log.
const MaxSize = 1 << 48

// NodeCount is the number of hashes in the Nodes of a row: those of the
// subtrees that the record completes.
func NodeCount(seq uint64) int { return 1 + bits.TrailingZeros64(^seq) }

// tree is the right edge of an RFC 6962 tree: what is needed to append to it
// and to compute its root.
type tree struct {
	size uint64
	// edge holds the roots of the complete subtrees, largest first: one for each
	// one bit of size.
	edge []tlog.Hash
}

func (t *tree) clone() tree {
	return tree{size: t.size, edge: append(make([]tlog.Hash, 0, len(t.edge)+1), t.edge...)}
}

// append adds a leaf, and appends the hashes that it completes to nodes.
func (t *tree) append(leaf tlog.Hash, nodes []byte) []byte {
	nodes = append(nodes, leaf[:]...)
	for n := t.size; n&1 == 1; n >>= 1 {
		leaf = tlog.NodeHash(t.edge[len(t.edge)-1], leaf)
		t.edge = t.edge[:len(t.edge)-1]
		nodes = append(nodes, leaf[:]...)
	}
	t.edge = append(t.edge, leaf)
	t.size++
	return nodes
}

// root is the hash of the whole tree.
func (t *tree) root() tlog.Hash {
	if t.size == 0 {
		root, _ := tlog.TreeHash(0, nil) // reads nothing and cannot fail
		return root
	}
	root := t.edge[len(t.edge)-1]
	for i := len(t.edge) - 2; i >= 0; i-- {
		root = tlog.NodeHash(t.edge[i], root)
	}
	return root
}

// equal says whether both are the same tree: the root follows from the edge.
func (t *tree) equal(o *tree) bool { return t.size == o.size && slices.Equal(t.edge, o.edge) }

// Tree computes the hash of a log from its records, one after the other. The
// zero Tree is that of an empty log.
type Tree struct{ t tree }

// Append adds the [Hash] of the next record.
func (t *Tree) Append(h tlog.Hash) { t.t.append(h, nil) }

// Size is the number of records.
func (t *Tree) Size() uint64 { return t.t.size }

// Root is the hash of the tree (RFC 6962 section 2.1).
func (t *Tree) Root() tlog.Hash { return t.t.root() }

// node is a subtree of 2^level leaves, the nth of its level.
type node struct {
	level int
	n     uint64
}

// row is the record that completes the subtree.
func (n node) row() uint64 { return (n.n+1)<<n.level - 1 }

// between are the subtrees that make up the leaves from a to b, as they follow
// each other when a tree of size a grows to size b.
func between(a, b uint64) []node {
	var nodes []node
	for a < b {
		level := bits.Len64(b-a) - 1
		if a != 0 {
			level = min(level, bits.TrailingZeros64(a))
		}
		nodes = append(nodes, node{level, a >> level})
		a += 1 << level
	}
	return nodes
}

// grow is the tree of the given size that begins with t, from the hashes of
// between(t.size, size). It reads what it needs and computes the rest.
func (t *tree) grow(size uint64, hashes []tlog.Hash) tree {
	g := t.clone()
	for i, n := range between(t.size, size) {
		h := hashes[i]
		// The subtree joins those of its own size to the left, as a leaf does.
		for s := g.size >> n.level; s&1 == 1; s >>= 1 {
			h = tlog.NodeHash(g.edge[len(g.edge)-1], h)
			g.edge = g.edge[:len(g.edge)-1]
		}
		g.edge = append(g.edge, h)
		g.size += 1 << n.level
	}
	return g
}

// nodeReader reads hashes of subtrees from a store.
type nodeReader struct {
	nodes func(ctx context.Context, seqs []uint64) ([][]byte, error)
	ctx   context.Context //nolint:containedctx // tlog's interface has no context; it lives as long as one proof
}

// ReadHashes implements tlog.HashReader, with one call of the store.
func (r nodeReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	nodes := make([]node, len(indexes))
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		nodes[i] = node{level, uint64(n)}
	}
	return r.read(nodes)
}

func (r nodeReader) read(nodes []node) ([]tlog.Hash, error) {
	var seqs []uint64
	at := map[uint64]int{}
	for _, n := range nodes {
		if _, ok := at[n.row()]; !ok {
			at[n.row()] = len(seqs)
			seqs = append(seqs, n.row())
		}
	}
	rows, err := r.nodes(r.ctx, seqs)
	if err != nil {
		return nil, err
	}
	if len(rows) != len(seqs) {
		return nil, fmt.Errorf("%w: hashes are missing", ErrTampered)
	}
	hashes := make([]tlog.Hash, len(nodes))
	for i, n := range nodes {
		stored := rows[at[n.row()]]
		if len(stored) != tlog.HashSize*NodeCount(n.row()) {
			return nil, fmt.Errorf("%w: the hashes of record %d", ErrTampered, n.row())
		}
		copy(hashes[i][:], stored[n.level*tlog.HashSize:])
	}
	return hashes, nil
}

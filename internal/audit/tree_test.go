package audit_test

import (
	"bytes"
	"fmt"
	"math/bits"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
)

// stored is a tree as package tlog keeps it.
type stored []tlog.Hash

func (s stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x >= int64(len(s)) {
			return nil, fmt.Errorf("hash %d of %d", x, len(s))
		}
		out[i] = s[x]
	}
	return out, nil
}

// TestRowsHoldTheHashesOfTheTree compares what is stored, and the proofs made
// from it, with package tlog over the same records.
func TestRowsHoldTheHashesOfTheTree(t *testing.T) {
	const n = 70
	store := audittest.NewStore()
	l := audittest.NewLog(t, store)
	for range n {
		if _, err := l.Append(t.Context(), audit.Event{Kind: audit.Start}); err != nil {
			t.Fatal(err)
		}
	}
	var reference stored
	var tree audit.Tree
	roots := []tlog.Hash{tree.Root()}
	for i, row := range store.State().Rows {
		hashes, err := tlog.StoredHashes(int64(i), row.Body, reference)
		if err != nil {
			t.Fatal(err)
		}
		reference = append(reference, hashes...)
		var want []byte
		for _, h := range hashes {
			want = append(want, h[:]...)
		}
		if !bytes.Equal(row.Nodes, want) || len(want) != 32*audit.NodeCount(uint64(i)) {
			t.Fatalf("Nodes of row %d = %x, want %x", i, row.Nodes, want)
		}
		tree.Append(audit.Hash(row.Body))
		root, err := tlog.TreeHash(int64(i+1), reference)
		if err != nil || tree.Root() != root || tree.Size() != uint64(i+1) {
			t.Fatalf("Root() of %d = %v, want %v, %v", i+1, tree.Root(), root, err)
		}
		roots = append(roots, root)
	}
	for size := uint64(1); size <= n; size++ {
		for seq := range size {
			row, of, proof, err := l.ProveRecord(t.Context(), seq, size)
			if err != nil || of != size {
				t.Fatalf("ProveRecord(%d, %d) = %d, %v", seq, size, of, err)
			}
			if err := tlog.CheckRecord(proof, int64(size), roots[size], int64(seq), audit.Hash(row.Body)); err != nil {
				t.Errorf("the proof of %d in %d: %v", seq, size, err)
			}
			_, proof, err = l.ProveTree(t.Context(), seq+1, size)
			if err != nil || tlog.CheckTree(proof, int64(size), roots[size], int64(seq+1), roots[seq+1]) != nil {
				t.Errorf("ProveTree(%d, %d) does not hold: %v", seq+1, size, err)
			}
		}
	}
	for b := range uint64(n + 1) {
		for a := range b + 1 {
			root, read, err := audit.Grow(a, b, reference)
			if err != nil || root != roots[b] || read > 2*bits.Len64(b-a) {
				t.Errorf("a tree of %d grown to %d = %v with %d hashes, %v, want %v", a, b, root, read, err, roots[b])
			}
		}
	}
}

func TestEmptyTreeIsTheHashOfNothing(t *testing.T) {
	var tree audit.Tree
	root := tree.Root()
	if got := fmt.Sprintf("%x", root[:]); got != "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" {
		t.Errorf("Root() = %s, want SHA-256 of nothing", got)
	}
}

func FuzzHead(f *testing.F) {
	key := audittest.Identity().Key
	store := audittest.NewStore()
	l := audittest.NewLog(f, store)
	for range 3 {
		if _, err := l.Append(f.Context(), audit.Event{Kind: audit.Start}); err != nil {
			f.Fatal(err)
		}
		f.Add(store.State().Head)
	}
	f.Add([]byte("teekms audit head v1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		again, _, err := audit.ReadHead(b, key)
		if b != nil && err == nil && !bytes.Equal(b, again) {
			t.Errorf("seal(open(%x)) = %x", b, again)
		}
	})
}

package audit

import (
	"golang.org/x/mod/sumdb/tlog"

	"teekms/internal/keys"
)

// ParseCheckpoint reads the text of a checkpoint.
var ParseCheckpoint = parseCheckpoint

// ReadHead opens a sealed head and seals it again.
func ReadHead(b []byte, key keys.Secret) (again []byte, size uint64, err error) {
	h, err := openHead(b, key)
	if err != nil {
		return nil, 0, err
	}
	return h.seal(key), h.tree.size, nil
}

// Grow is the tree of the records from 0 to b, from the tree of those to a and
// the hashes between the two.
func Grow(a, b uint64, r tlog.HashReader) (root tlog.Hash, read int, err error) {
	var t tree
	for i := range a {
		h, err := r.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(i))})
		if err != nil {
			return root, 0, err
		}
		t.append(h[0], nil)
	}
	var hashes []tlog.Hash
	for _, n := range between(a, b) {
		h, err := r.ReadHashes([]int64{tlog.StoredHashIndex(n.level, int64(n.n))})
		if err != nil {
			return root, 0, err
		}
		hashes = append(hashes, h...)
	}
	grown := t.grow(b, hashes)
	return grown.root(), len(hashes), nil
}

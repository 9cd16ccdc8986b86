// Package audit is the append-only, hash-chained log of everything that a KMS
// released, refused or changed, and its proofs (docs/audit.md).
//
// A [Log] appends events in groups, each group one transaction of the
// database; [Log.Append] returns when the record is durable, and not before.
// Records are the leaves of an RFC 6962 tree whose head is signed as a
// checkpoint.
package audit

import (
	"context"
	"errors"

	"teekms/internal/registry"
)

// IDSize is the size of an event id in bytes.
const IDSize = 16

// Row is a record as it is stored.
type Row struct {
	// Seq is its place in the log, from 0.
	Seq uint64
	// EventID is unique in the log.
	EventID [IDSize]byte
	// Body is the encoded record, at most 1 MiB.
	Body []byte
	// Nodes are the hashes of the tree that this record completes, 32 bytes
	// each, leaf first: 1 + the number of trailing one bits of Seq.
	Nodes []byte
}

// Batch is what one transaction writes.
type Batch struct {
	// Clear removes all rows and rules that were there before, first.
	Clear bool
	// Head replaces the head: sealed by the Log, opaque to the store, at most
	// 16 KiB.
	Head []byte
	// Rows are appended, with consecutive Seq.
	Rows []Row
	// Edits are applied in order; Revision is the policy's after them, and what
	// rules that are added by them get. Zero Revision with no Edits leaves the
	// policy's revision as it is.
	Edits    []registry.Edit
	Revision uint64
}

// ErrDuplicate says that a row with the same EventID exists: what was committed
// came through although nobody said so.
var ErrDuplicate = errors.New("the audit log has a record of this event already")

// Store keeps the rows. Its methods may be called from several goroutines and
// processes.
type Store interface {
	// Head returns the head, nil before the first commit.
	Head(ctx context.Context) ([]byte, error)
	// Commit calls build with the current head (nil before the first) while
	// nobody else can change it, and writes what it returns: all of it or
	// nothing, durable when Commit returns nil. build may be called again where
	// the store tries again; it must not use the store, and its error is
	// returned as it is. The error is ErrDuplicate where an EventID exists. After
	// any other error it is not known whether the batch was written.
	Commit(ctx context.Context, build func(head []byte) (Batch, error)) error
	// Rows returns at most limit rows from Seq from on, in order.
	Rows(ctx context.Context, from uint64, limit int) ([]Row, error)
	// Find returns the row of an event, ok false where there is none.
	Find(ctx context.Context, id [IDSize]byte) (row Row, ok bool, err error)
	// Nodes returns the Nodes of the rows with these Seq, in the order asked.
	Nodes(ctx context.Context, seqs []uint64) ([][]byte, error)
}

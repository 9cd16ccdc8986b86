package kms

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"golang.org/x/mod/sumdb/tlog"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/audit"
	"teekms/internal/rpc"
	"teekms/internal/storage"
)

// errNotOpen refuses what needs a database.
var errNotOpen = errors.New("the database is not open")

// The records in one answer of ListAudit.
const (
	auditPage    = 256
	auditPageMax = 1024
)

// auditErrors maps the errors of reading the log, and of appending to it.
func auditErrors() rpc.Table {
	return rpc.Table{
		rpc.As(connect.CodeOutOfRange, func(e *rangeError) string { return e.Error() }),
		rpc.Is(storage.ErrIntegrity, connect.CodeDataLoss, ""), // which is an ErrTampered too
		rpc.Is(audit.ErrTampered, connect.CodeDataLoss, ""),
		rpc.Is(audit.ErrRolledBack, connect.CodeDataLoss, ""),
		rpc.Is(audit.ErrForked, connect.CodeDataLoss, ""),
		rpc.Is(audit.ErrUnavailable, connect.CodeUnavailable, ""),
		rpc.Is(audit.ErrClosed, connect.CodeUnavailable, ""),
		rpc.Is(storage.ErrUnavailable, connect.CodeUnavailable, ""),
	}
}

// rangeError tells a caller how long the log is.
type rangeError struct{ error }

func (e *rangeError) Unwrap() error { return e.error }

// public lets a caller see what of an error is his own doing.
func public(err error) error {
	if errors.Is(err, audit.ErrRange) {
		return &rangeError{err}
	}
	return err
}

// ListAudit gives records of the audit log.
func (a *Admin) ListAudit(ctx context.Context, r *kmsv1.ListAuditRequest) (*kmsv1.ListAuditResponse, error) {
	if a.audit == nil {
		return nil, errNotOpen
	}
	limit := int(min(r.GetLimit(), auditPageMax))
	if limit == 0 {
		limit = auditPage
	}
	rows, size, err := a.audit.Records(ctx, r.GetFrom(), limit)
	if err != nil {
		return nil, public(err)
	}
	res := &kmsv1.ListAuditResponse{Size: size}
	for _, row := range rows {
		res.Records = append(res.Records, auditRecord(row))
	}
	return res, nil
}

func auditRecord(row audit.Row) *kmsv1.AuditRecord {
	return &kmsv1.AuditRecord{Seq: row.Seq, Body: row.Body}
}

// GetAuditCheckpoint signs the head of the audit log.
func (a *Admin) GetAuditCheckpoint(ctx context.Context, _ *kmsv1.GetAuditCheckpointRequest) (*kmsv1.GetAuditCheckpointResponse, error) {
	if a.audit == nil {
		return nil, errNotOpen
	}
	checkpoint, err := a.audit.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	key, signature := a.audit.VerifierKey()
	return &kmsv1.GetAuditCheckpointResponse{Checkpoint: checkpoint, Key: key, KeySignature: signature}, nil
}

// ProveAudit proves that a record is in the log.
func (a *Admin) ProveAudit(ctx context.Context, r *kmsv1.ProveAuditRequest) (*kmsv1.ProveAuditResponse, error) {
	if a.audit == nil {
		return nil, errNotOpen
	}
	row, size, proof, err := a.audit.ProveRecord(ctx, r.GetSeq(), r.GetTreeSize())
	if err != nil {
		return nil, public(err)
	}
	return &kmsv1.ProveAuditResponse{Record: auditRecord(row), TreeSize: size, Proof: hashes(proof)}, nil
}

// ProveAuditConsistency proves that an older log is the beginning of a newer
// one.
func (a *Admin) ProveAuditConsistency(ctx context.Context, r *kmsv1.ProveAuditConsistencyRequest) (*kmsv1.ProveAuditConsistencyResponse, error) {
	if a.audit == nil {
		return nil, errNotOpen
	}
	size, proof, err := a.audit.ProveTree(ctx, r.GetOldSize(), r.GetNewSize())
	if err != nil {
		return nil, public(err)
	}
	return &kmsv1.ProveAuditConsistencyResponse{NewSize: size, Proof: hashes(proof)}, nil
}

func hashes(proof []tlog.Hash) [][]byte {
	out := make([][]byte, len(proof))
	for i := range proof {
		out[i] = proof[i][:]
	}
	return out
}

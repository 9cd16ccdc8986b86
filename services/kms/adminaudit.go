package kms

import (
	"context"
	"errors"

	kmsv1 "teekms/gen/kms/v1"
)

// errNotOpen refuses what needs a database.
var errNotOpen = errors.New("the database is not open")

// ListAudit gives records of the audit log.
func (a *Admin) ListAudit(context.Context, *kmsv1.ListAuditRequest) (*kmsv1.ListAuditResponse, error) {
	return nil, errNotOpen
}

// GetAuditCheckpoint signs the head of the audit log.
func (a *Admin) GetAuditCheckpoint(context.Context, *kmsv1.GetAuditCheckpointRequest) (*kmsv1.GetAuditCheckpointResponse, error) {
	return nil, errNotOpen
}

// ProveAudit proves that a record is in the log.
func (a *Admin) ProveAudit(context.Context, *kmsv1.ProveAuditRequest) (*kmsv1.ProveAuditResponse, error) {
	return nil, errNotOpen
}

// ProveAuditConsistency proves that an older log is the beginning of a newer
// one.
func (a *Admin) ProveAuditConsistency(context.Context, *kmsv1.ProveAuditConsistencyRequest) (*kmsv1.ProveAuditConsistencyResponse, error) {
	return nil, errNotOpen
}

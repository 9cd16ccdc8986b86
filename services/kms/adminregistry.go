package kms

import (
	"context"

	kmsv1 "teekms/gen/kms/v1"
)

// UpdateRegistry changes the policy registry.
func (a *Admin) UpdateRegistry(context.Context, *kmsv1.UpdateRegistryRequest) (*kmsv1.UpdateRegistryResponse, error) {
	return nil, errNotOpen
}

// ListRegistry gives rules of the policy registry.
func (a *Admin) ListRegistry(context.Context, *kmsv1.ListRegistryRequest) (*kmsv1.ListRegistryResponse, error) {
	return nil, errNotOpen
}

// ExplainRegistry shows what decisions rest on.
func (a *Admin) ExplainRegistry(context.Context, *kmsv1.ExplainRegistryRequest) (*kmsv1.ExplainRegistryResponse, error) {
	return nil, errNotOpen
}

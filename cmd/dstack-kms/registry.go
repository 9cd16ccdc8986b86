package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"teekms/cmd/internal/node"
	"teekms/internal/audit"
	"teekms/internal/authz"
	authzregistry "teekms/internal/authz/registry"
	"teekms/internal/keys"
	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/services/onboard"
)

// onboardingRegistry is the registry of root keys that are not committed yet.
type onboardingRegistry struct {
	authz.Authorizer
	db  storage.DB
	log *audit.Log
}

// openRegistry opens the configured database with root keys that a source gave.
func openRegistry(ctx context.Context, n *node.Node, roots *keys.Roots) (node.Registry, error) {
	if n.Config.Core.BootstrapServer.Enabled && !n.Config.ChoosesDatabase() {
		return nil, &node.DatabaseRefusedError{Err: errors.New("none is configured yet, and the registry is in it")}
	}
	c, err := fileDatabase(n)
	if err != nil {
		return nil, err
	}
	db, err := openDatabase(ctx, c, roots, n.Log)
	if err != nil {
		if refusedDatabase(err) {
			err = &node.DatabaseRefusedError{Err: err}
		}
		return nil, err
	}
	r, err := newOnboardingRegistry(ctx, n, db, roots)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return r, nil
}

func newOnboardingRegistry(ctx context.Context, n *node.Node, db storage.DB, roots *keys.Roots) (*onboardingRegistry, error) {
	c, err := logConfig(db, roots, n.Log)
	if err != nil {
		return nil, err
	}
	policy, err := registry.New(registry.Config{Store: db})
	if err != nil {
		return nil, err
	}
	authority, err := authzregistry.New(authzregistry.Config{Policy: policy, Log: n.Log, Now: time.Now})
	if err != nil {
		return nil, err
	}
	c.Now = time.Now
	log, err := audit.New(c) //nolint:contextcheck // its appender lives until Close
	if err != nil {
		return nil, err
	}
	if err := log.Check(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the audit log: %w", err), log.Close(ctx))
	}
	return &onboardingRegistry{authority, db, log}, nil
}

// Onboarded implements node.Registry.
func (r *onboardingRegistry) Onboarded(ctx context.Context, got onboard.Received) error {
	_, err := r.log.Append(ctx, audit.Event{Kind: audit.Onboard, Fields: map[string]string{
		"domain": got.Domain, "source_app_id": hex.EncodeToString(got.Source.AppID),
		"source_mr_aggregated": hex.EncodeToString(got.Source.MRAggregated[:]),
		"source_os_image_hash": hex.EncodeToString(got.Source.OSImageHash),
		"source_device_id":     hex.EncodeToString(got.Source.DeviceID[:]),
		"source_tcb_status":    got.Source.TCBStatus,
	}})
	return err
}

// Close implements node.Registry.
func (r *onboardingRegistry) Close(ctx context.Context) error {
	return errors.Join(r.log.Close(ctx), r.db.Close())
}

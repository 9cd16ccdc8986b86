package registry_test

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/zap"

	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
	"teekms/internal/authz"
	authzregistry "teekms/internal/authz/registry"
	"teekms/internal/keys"
	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/internal/storage/sqldb"
)

// recorded commits changes to an audit log.
type recorded struct{ *audit.Log }

func (r recorded) CommitChange(ctx context.Context, c registry.Change) (registry.Receipt, error) {
	receipt, err := r.Append(ctx, audit.Event{Kind: audit.RegistryChange, Edits: c.Edits, ExpectedRevision: c.ExpectedRevision})
	return registry.Receipt{Revision: receipt.Revision, Seq: receipt.Seq}, err
}

// TestNoDecisionSeesHalfAChange changes rules of a real database so that no
// revision allows the workload, though each of its rules is there half of the
// time, and asks meanwhile.
func TestNoDecisionSeesHalfAChange(t *testing.T) {
	db, err := sqldb.Open(t.Context(), storage.Config{
		Type: storage.SQLite, Path: t.TempDir(), Root: [32]byte{1}, Key: keys.NewSecret(bytes.Repeat([]byte{1}, 32)), Log: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	log, err := audit.New(audit.Config{Store: db, Identity: audittest.Identity(), Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close(t.Context())
	policy, err := registry.New(registry.Config{Store: db, Committer: recorded{log}})
	if err != nil {
		t.Fatal(err)
	}
	a, err := authzregistry.New(authzregistry.Config{Policy: policy, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	change := func(edits ...registry.Edit) {
		t.Helper()
		if _, err := policy.Update(t.Context(), registry.Change{Edits: edits}); err != nil {
			t.Fatal(err)
		}
	}
	var all []registry.Edit
	for _, r := range rules() {
		all = append(all, registry.Edit{Op: registry.Add, Rule: r})
	}
	image, device := rules()[2], rules()[7]
	change(all...)
	if d, err := a.Authorize(t.Context(), request(authz.App)); err != nil || !d.Allowed {
		t.Fatalf("Authorize() = %+v, %v, want it allowed", d, err)
	}
	change(registry.Edit{Op: registry.Remove, Rule: device})

	var done atomic.Bool
	var asked atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !done.Load() {
				d, err := a.Authorize(t.Context(), request(authz.App))
				if err != nil || d.Allowed || d.Reason != registry.ReasonOSImage && d.Reason != registry.ReasonDevice {
					t.Errorf("Authorize() = %+v, %v, want it denied for the image or the device", d, err)
					return
				}
				asked.Add(1)
			}
		})
	}
	for range 100 {
		change(registry.Edit{Op: registry.Remove, Rule: image}, registry.Edit{Op: registry.Add, Rule: device})
		change(registry.Edit{Op: registry.Remove, Rule: device}, registry.Edit{Op: registry.Add, Rule: image})
	}
	done.Store(true)
	wg.Wait()
	if asked.Load() < 100 {
		t.Errorf("%d decisions meanwhile, want more", asked.Load())
	}
}

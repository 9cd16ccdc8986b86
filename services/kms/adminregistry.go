package kms

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/audit"
	"teekms/internal/registry"
	"teekms/internal/rpc"
	"teekms/internal/storage"
)

// registryPage is the most rules in one answer of ListRegistry.
const registryPage = 1000

// RegistryChanges returns what records the changes of a registry: every change
// is a record of the audit log, and is applied with it.
func RegistryChanges(log audit.Recorder) registry.Committer { return registryChanges{log} }

type registryChanges struct{ log audit.Recorder }

// CommitChange implements registry.Committer. The error is audit.ErrRevision
// where another revision was expected.
func (c registryChanges) CommitChange(ctx context.Context, ch registry.Change) (registry.Receipt, error) {
	r, err := c.log.Append(ctx, audit.Event{
		Kind: audit.RegistryChange, Edits: ch.Edits, ExpectedRevision: ch.ExpectedRevision,
		Fields: map[string]string{"comment": ch.Comment, "by": recordable(ch.By), "request_id": recordable(rpc.RequestID(ctx))},
	})
	return registry.Receipt{Revision: r.Revision, Seq: r.Seq}, err
}

// registryErrors maps the errors of the registry.
func registryErrors() rpc.Table {
	return rpc.Table{
		rpc.As(connect.CodeInvalidArgument, func(e *registry.EditError) string {
			field := "rule." + e.Field
			if e.Field == "op" {
				field = e.Field
			}
			return fmt.Sprintf("edits[%d].%s: %s", e.Index, field, e.Reason)
		}),
		rpc.Is(registry.ErrNoEdits, connect.CodeInvalidArgument, "edits: "+registry.ErrNoEdits.Error()),
		rpc.Is(registry.ErrTooManyEdits, connect.CodeInvalidArgument, "edits: "+registry.ErrTooManyEdits.Error()),
		rpc.Is(registry.ErrComment, connect.CodeInvalidArgument, "comment: "+registry.ErrComment.Error()),
		rpc.Is(audit.ErrRevision, connect.CodeAborted, "expected_revision: "+audit.ErrRevision.Error()),
		rpc.Is(registry.ErrGateways, connect.CodeDataLoss, ""),
		rpc.Is(storage.ErrIntegrity, connect.CodeDataLoss, ""),
		rpc.Is(storage.ErrUnavailable, connect.CodeUnavailable, ""),
	}
}

// UpdateRegistry changes the policy registry: all edits in one revision, or
// none.
func (a *Admin) UpdateRegistry(ctx context.Context, r *kmsv1.UpdateRegistryRequest) (*kmsv1.UpdateRegistryResponse, error) {
	if a.registry == nil {
		return nil, errNotOpen
	}
	change := registry.Change{ExpectedRevision: r.ExpectedRevision, Comment: r.GetComment(), By: operatorOf(ctx)}
	if len(r.GetEdits()) > registry.MaxEdits {
		return nil, registry.ErrTooManyEdits
	}
	for _, e := range r.GetEdits() {
		rule := e.GetRule()
		change.Edits = append(change.Edits, registry.Edit{
			Op: registry.Op(e.GetOp()), Rule: registry.Rule{Kind: registry.Kind(rule.GetKind()), Subject: rule.GetSubject(), Value: rule.GetValue()},
		})
	}
	receipt, err := a.registry.Update(ctx, change)
	if err != nil {
		return nil, err
	}
	return &kmsv1.UpdateRegistryResponse{Revision: receipt.Revision, AuditSeq: receipt.Seq}, nil
}

// ListRegistry gives rules of the policy registry, sorted by kind, subject and
// value.
func (a *Admin) ListRegistry(ctx context.Context, r *kmsv1.ListRegistryRequest) (*kmsv1.ListRegistryResponse, error) {
	if a.registry == nil {
		return nil, errNotOpen
	}
	q, err := listQuery(r)
	if err != nil {
		return nil, err
	}
	// The revision comes first: rules that are newer than it are told by the
	// next page, or by the change that expects it.
	res := &kmsv1.ListRegistryResponse{}
	if res.Revision, err = a.registry.Revision(ctx); err != nil {
		return nil, err
	}
	entries, more, err := a.page(ctx, q)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		res.Rules = append(res.Rules, &kmsv1.RegistryRule{Kind: string(e.Kind), Subject: e.Subject, Value: e.Value, Revision: e.Revision})
	}
	if more {
		res.NextPageToken = pageToken(entries[len(entries)-1].Rule)
	}
	return res, nil
}

// pageQuery selects a page of rules.
type pageQuery struct {
	kinds   []registry.Kind
	subject string
	after   registry.Rule
	size    int
}

func listQuery(r *kmsv1.ListRegistryRequest) (pageQuery, error) {
	q := pageQuery{size: int(min(r.GetPageSize(), registryPage)), subject: r.GetSubject()}
	if q.size == 0 {
		q.size = registryPage
	}
	kind := registry.Kind(r.GetKind())
	switch {
	case r.GetKind() != "" && !kind.Valid():
		return q, &rpc.FieldError{Field: "kind", Reason: "there is no such kind of rules"}
	case r.GetKind() != "" && !kind.HasSubject() && q.subject != "":
		return q, &rpc.FieldError{Field: "subject", Reason: "rules of this kind have none"}
	}
	if q.subject != "" {
		var err error
		if q.subject, err = registry.CanonicalAppID(q.subject); err != nil {
			return q, &rpc.FieldError{Field: "subject", Reason: err.Error()}
		}
	}
	if r.GetPageToken() != "" {
		var err error
		if q.after, err = parsePageToken(r.GetPageToken()); err != nil {
			return q, &rpc.FieldError{Field: "page_token", Reason: err.Error()}
		}
	}
	for _, k := range registry.Kinds() {
		if (kind == "" || k == kind) && (q.subject == "" || k.HasSubject()) && k >= q.after.Kind {
			q.kinds = append(q.kinds, k)
		}
	}
	return q, nil
}

// page lists kind after kind until the page is full, and sees whether there is
// more.
func (a *Admin) page(ctx context.Context, q pageQuery) (entries []registry.Entry, more bool, err error) {
	for _, k := range q.kinds {
		next := registry.Query{Kind: k, Subject: q.subject, Limit: max(1, q.size-len(entries))}
		if q.after.Kind == k {
			next.After = q.after
		}
		found, err := a.registry.List(ctx, next)
		if err != nil {
			return nil, false, err
		}
		if len(entries) == q.size {
			if len(found) > 0 {
				return entries, true, nil
			}
			continue
		}
		entries = append(entries, found...)
		if len(entries) < q.size {
			continue
		}
		next.After, next.Limit = entries[len(entries)-1].Rule, 1
		if found, err = a.registry.List(ctx, next); err != nil || len(found) > 0 {
			return entries, true, err
		}
	}
	return entries, false, nil
}

const tokenSeparator = "/"

// pageToken names the last rule of a page.
func pageToken(r registry.Rule) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strings.Join([]string{string(r.Kind), r.Subject, r.Value}, tokenSeparator)))
}

func parsePageToken(token string) (registry.Rule, error) {
	text, err := base64.RawURLEncoding.DecodeString(token)
	parts := strings.Split(string(text), tokenSeparator)
	if err == nil && len(parts) == 3 {
		r := registry.Rule{Kind: registry.Kind(parts[0]), Subject: parts[1], Value: parts[2]}
		if c, err := registry.Canonical(r); err == nil && c == r {
			return r, nil
		}
	}
	return registry.Rule{}, errors.New("not a next_page_token")
}

package kms

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/audit"
	"teekms/internal/registry"
	"teekms/internal/rpc"
)

// Bounds of ExplainRegistry.
const (
	maxExplained  = 100
	maxAdvisories = 256
	maxWordSize   = 128
	maxBytesSize  = 64
	// denialWindow is how many records are read at once in search of denials,
	// denialWindows how often.
	denialWindow  = 256
	denialWindows = 64
)

// ExplainRegistry shows every rule that decisions rest on: the one about a
// workload, or those about the workloads that were denied last.
func (a *Admin) ExplainRegistry(ctx context.Context, r *kmsv1.ExplainRegistryRequest) (*kmsv1.ExplainRegistryResponse, error) {
	if a.registry == nil {
		return nil, errNotOpen
	}
	n := r.GetLastDenials()
	switch {
	case r.GetWorkload() != nil && n != 0:
		return nil, &rpc.FieldError{Field: "last_denials", Reason: "give a workload or this, not both"}
	case r.GetWorkload() == nil && (n == 0 || n > maxExplained):
		return nil, &rpc.FieldError{Field: "last_denials", Reason: fmt.Sprintf("want 1 to %d, or a workload", maxExplained)}
	case r.GetWorkload() == nil:
		return a.explainDenials(ctx, int(n))
	}
	if err := checkWorkload(r.GetWorkload()); err != nil {
		return nil, err
	}
	e, err := a.explain(ctx, r.GetWorkload())
	if err != nil {
		return nil, err
	}
	return &kmsv1.ExplainRegistryResponse{Explanations: []*kmsv1.RegistryExplanation{e}}, nil
}

func checkWorkload(w *kmsv1.RegistryWorkload) error {
	wrong := func(field, reason string) error { return &rpc.FieldError{Field: "workload." + field, Reason: reason} }
	if s := registry.Subject(w.GetSubject()); s != registry.SubjectApp && s != registry.SubjectKMS {
		return wrong("subject", "want app or kms")
	}
	for _, f := range []struct {
		name  string
		value []byte
	}{
		{"app_id", w.GetAppId()},
		{"compose_hash", w.GetComposeHash()},
		{"os_image_hash", w.GetOsImageHash()},
		{"mr_aggregated", w.GetMrAggregated()},
		{"device_id", w.GetDeviceId()},
	} {
		if len(f.value) > maxBytesSize {
			return wrong(f.name, fmt.Sprintf("%d bytes, want at most %d", len(f.value), maxBytesSize))
		}
	}
	if len(w.GetAdvisoryIds()) > maxAdvisories {
		return wrong("advisory_ids", fmt.Sprintf("%d of them, want at most %d", len(w.GetAdvisoryIds()), maxAdvisories))
	}
	if n := len(w.GetTcbStatus()); n > maxWordSize {
		return wrong("tcb_status", fmt.Sprintf("%d bytes, want at most %d", n, maxWordSize))
	}
	for _, id := range w.GetAdvisoryIds() {
		if len(id) > maxWordSize {
			return wrong("advisory_ids", fmt.Sprintf("%d bytes, want at most %d", len(id), maxWordSize))
		}
	}
	return nil
}

func (a *Admin) explain(ctx context.Context, w *kmsv1.RegistryWorkload) (*kmsv1.RegistryExplanation, error) {
	e, err := a.registry.Explain(ctx, registry.Workload{
		Subject: registry.Subject(w.GetSubject()), AppID: w.GetAppId(), ComposeHash: w.GetComposeHash(), OSImageHash: w.GetOsImageHash(),
		MRAggregated: w.GetMrAggregated(), DeviceID: w.GetDeviceId(), TCBStatus: w.GetTcbStatus(), AdvisoryIDs: w.GetAdvisoryIds(),
	})
	if err != nil {
		return nil, err
	}
	out := &kmsv1.RegistryExplanation{Workload: w, Allowed: e.Decision.Allowed, Revision: e.Decision.Revision}
	for _, c := range e.Checks {
		out.Checks = append(out.Checks, &kmsv1.RegistryCheck{
			Kind: string(c.Kind), Wanted: c.Wanted, Seen: c.Seen, Passed: c.Passed, Reason: c.Reason,
		})
	}
	return out, nil
}

// explainDenials judges the workloads that were denied last by the rules of
// now.
func (a *Admin) explainDenials(ctx context.Context, n int) (*kmsv1.ExplainRegistryResponse, error) {
	denials, err := a.lastDenials(ctx, n)
	if err != nil {
		return nil, err
	}
	res := &kmsv1.ExplainRegistryResponse{}
	for _, d := range denials {
		e, err := a.explain(ctx, deniedWorkload(d.Fields))
		if err != nil {
			return nil, err
		}
		seq := d.Seq
		e.AuditSeq, e.DeniedReason = &seq, d.Fields["reason"]
		res.Explanations = append(res.Explanations, e)
	}
	return res, nil
}

// lastDenials reads the audit log backwards, newest denial first. It looks at
// so many records and no more.
func (a *Admin) lastDenials(ctx context.Context, n int) ([]*audit.Record, error) {
	if a.audit == nil {
		return nil, errNotOpen
	}
	end, err := a.audit.Size(ctx)
	if err != nil {
		return nil, err
	}
	var found []*audit.Record
	for range denialWindows {
		begin := end - min(end, denialWindow)
		records, err := a.records(ctx, begin, end)
		if err != nil {
			return nil, err
		}
		for i := len(records) - 1; i >= 0 && len(found) < n; i-- {
			if records[i].Kind == audit.Denial {
				found = append(found, records[i])
			}
		}
		if end = begin; end == 0 || len(found) == n {
			break
		}
	}
	return found, nil
}

// records reads all records from begin to end.
func (a *Admin) records(ctx context.Context, begin, end uint64) ([]*audit.Record, error) {
	var records []*audit.Record
	for begin < end {
		rows, _, err := a.audit.Records(ctx, begin, int(end-begin))
		if err != nil {
			return nil, err
		}
		if len(rows) == 0 {
			return nil, audit.ErrRolledBack // it was longer a moment ago
		}
		for _, row := range rows {
			r, err := audit.Parse(row.Body)
			if err != nil {
				return nil, err
			}
			records = append(records, r)
		}
		begin += uint64(len(rows))
	}
	return records, nil
}

// deniedWorkload is what a denial was about. What was not recorded, or not as
// bytes, is empty.
func deniedWorkload(fields map[string]string) *kmsv1.RegistryWorkload {
	bytesOf := func(name string) []byte {
		b, err := hex.DecodeString(fields[name])
		if err != nil {
			return nil
		}
		return b
	}
	w := &kmsv1.RegistryWorkload{
		Subject: string(registry.SubjectApp), AppId: bytesOf("app_id"), ComposeHash: bytesOf("compose_hash"),
		OsImageHash: bytesOf("os_image_hash"), MrAggregated: bytesOf("mr_aggregated"), DeviceId: bytesOf("device_id"),
		TcbStatus: fields["tcb_status"],
	}
	if fields["subject"] == string(registry.SubjectKMS) {
		w.Subject = string(registry.SubjectKMS)
	}
	if ids := fields["advisory_ids"]; ids != "" {
		w.AdvisoryIds = strings.Split(ids, ",")
	}
	return w
}

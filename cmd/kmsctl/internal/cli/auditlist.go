package cli

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"teekms/cmd/kmsctl/internal/terminal"
	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/audit"
)

// auditListFlags are the flags of kmsctl audit list.
type auditListFlags struct {
	kinds  []string
	from   int64
	since  string
	limit  uint
	follow bool
	json   bool
}

func newAuditList(env Environment, admin *adminFlags) *cobra.Command {
	var f auditListFlags
	cmd := &cobra.Command{
		Use:   "list --admin URL",
		Short: "Show records of the audit log",
		Long: `Show the newest records, oldest first, or those from --from on. What is shown is
what the KMS says; kmsctl audit verify verifies it.`,
		Example: `  kmsctl audit list --admin http://127.0.0.1:8001 --kind app_key --since 24h
  kmsctl audit list --admin https://kms.example.com:9101 --ca-cert root-ca.crt --follow
  kmsctl audit list --admin http://127.0.0.1:8001 --from 0 --limit 0 --json | jq -r .fields.app_id`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, env, admin) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringArrayVar(&f.kinds, "kind", nil, "show records of this `kind` only; may be repeated")
	fs.Int64Var(&f.from, "from", -1, "begin with this `record`, instead of showing the newest")
	fs.StringVar(&f.since, "since", "", "show records since this `time` (RFC 3339), or of the last 90m, 24h, ... only")
	fs.UintVar(&f.limit, "limit", 50, "show at most this `number` of records; 0 is all")
	fs.BoolVar(&f.follow, "follow", false, "wait for more records and show them, until interrupted")
	fs.BoolVar(&f.json, "json", false, "print each record as a line of JSON")
	kinds := make([]string, 0, len(audit.Kinds()))
	for _, k := range audit.Kinds() {
		kinds = append(kinds, string(k))
	}
	complete(cmd, "kind", valueOf(kinds...))
	complete(cmd, "from", valueOf("0"))
	complete(cmd, "since", valueOf("1h", "24h", "168h"))
	complete(cmd, "limit", valueOf("0", "50", "1000"))
	return cmd
}

// lister shows the records that are wanted.
type lister struct {
	auditListFlags
	env    Environment
	kms    running
	oldest time.Time
	shown  uint
	pretty *terminal.Printer
}

func (f *auditListFlags) run(cmd *cobra.Command, env Environment, admin *adminFlags) error {
	for _, k := range f.kinds {
		if !slices.Contains(audit.Kinds(), audit.Kind(k)) {
			return usagef(cmd, "--kind: %q is none of %v", k, audit.Kinds())
		}
	}
	oldest, err := f.begin(cmd, env.Now())
	if err != nil {
		return err
	}
	c, err := admin.client(cmd, env)
	if err != nil {
		return err
	}
	l := &lister{auditListFlags: *f, env: env, kms: running{c}, oldest: oldest, pretty: env.printer()}
	next, err := l.show(cmd.Context())
	if err == nil && f.follow {
		err = l.wait(cmd.Context(), next)
	}
	return err
}

// begin reads --since: a time, or how long ago.
func (f *auditListFlags) begin(cmd *cobra.Command, now time.Time) (time.Time, error) {
	if f.since == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(f.since); err == nil && ago > 0 {
		return now.Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, f.since)
	if err != nil {
		return at, usagef(cmd, "--since: %q is neither a time like 2026-01-31T12:00:00Z nor a duration like 24h", f.since)
	}
	return at, nil
}

// show shows what there is, and returns the first record that there is not.
func (l *lister) show(ctx context.Context) (next uint64, err error) {
	if l.from >= 0 {
		return l.forward(ctx, uint64(l.from))
	}
	_, size, err := l.kms.page(ctx, 0, 1)
	if err != nil {
		return 0, err
	}
	var found []*audit.Record
	for end := size; end > 0; {
		start := end - min(end, maxPage)
		page, err := l.parse(ctx, start, end)
		if err != nil {
			return 0, err
		}
		found = append(l.wanted(page), found...)
		if l.limit > 0 && uint(len(found)) >= l.limit {
			found = found[uint(len(found))-l.limit:]
			break
		}
		// Replicas write with clocks of their own: a page that is all older is the
		// end, one record is not.
		if !slices.ContainsFunc(page, func(r *audit.Record) bool { return !r.Time.Before(l.oldest) }) {
			break
		}
		end = start
	}
	for _, r := range found {
		if err := l.print(r); err != nil {
			return 0, err
		}
	}
	return size, nil
}

// parse gets the records from start to end.
func (l *lister) parse(ctx context.Context, start, end uint64) ([]*audit.Record, error) {
	var records []*audit.Record
	for start < end {
		page, _, err := l.kms.page(ctx, start, uint32(min(end-start, maxPage)))
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return nil, fmt.Errorf("the KMS gives no record %d", start)
		}
		for _, raw := range page {
			r, err := parseRecord(raw)
			if err != nil {
				return nil, err
			}
			records = append(records, r)
		}
		start += uint64(len(page))
	}
	return records, nil
}

func parseRecord(raw *kmsv1.AuditRecord) (*audit.Record, error) {
	r, err := audit.Parse(raw.GetBody())
	if err != nil {
		return nil, fmt.Errorf("record %d: %w", raw.GetSeq(), err)
	}
	if r.Seq != raw.GetSeq() {
		return nil, fmt.Errorf("record %d says that it is record %d", raw.GetSeq(), r.Seq)
	}
	return r, nil
}

// forward shows records from a place on, and returns where it stopped.
func (l *lister) forward(ctx context.Context, from uint64) (uint64, error) {
	for {
		page, size, err := l.kms.page(ctx, from, maxPage)
		if err != nil {
			return from, err
		}
		for _, raw := range page {
			r, err := parseRecord(raw)
			if err != nil {
				return from, err
			}
			for _, r := range l.wanted([]*audit.Record{r}) {
				if err := l.print(r); err != nil {
					return from, err
				}
				if l.shown++; l.limit > 0 && l.shown == l.limit && !l.follow {
					return from, nil
				}
			}
			from++
		}
		if from >= size || len(page) == 0 {
			return from, nil
		}
	}
}

// wait shows what comes, until it is interrupted.
func (l *lister) wait(ctx context.Context, next uint64) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil // that is how it ends
		case <-tick.C:
		}
		var err error
		if next, err = l.forward(ctx, next); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

func (l *lister) wanted(records []*audit.Record) []*audit.Record {
	var out []*audit.Record
	for _, r := range records {
		if (len(l.kinds) == 0 || slices.Contains(l.kinds, string(r.Kind))) && !r.Time.Before(l.oldest) {
			out = append(out, r)
		}
	}
	return out
}

func (l *lister) print(r *audit.Record) error {
	if !l.json {
		l.pretty.Line("%s", recordLine(r))
		return l.pretty.Err()
	}
	enc := json.NewEncoder(l.env.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(recordJSON(r))
}

// recordLine is a record on one line.
func recordLine(r *audit.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s %s", r.Seq, r.Time.Format(time.RFC3339), r.Kind)
	for _, name := range slices.Sorted(maps.Keys(r.Fields)) {
		value := r.Fields[name]
		if strings.ContainsAny(value, " \"\n") {
			value = fmt.Sprintf("%q", value)
		}
		fmt.Fprintf(&b, " %s=%s", name, value)
	}
	for _, e := range r.Edits {
		fmt.Fprintf(&b, " [%s]", strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s", e.Op, e.Rule.Kind, e.Rule.Subject, e.Rule.Value)), " "))
	}
	return b.String()
}

type editJSON struct {
	Op      string `json:"op"`
	Kind    string `json:"kind"`
	Subject string `json:"subject,omitempty"`
	Value   string `json:"value,omitempty"`
}

func recordJSON(r *audit.Record) any {
	edits := make([]editJSON, 0, len(r.Edits))
	for _, e := range r.Edits {
		edits = append(edits, editJSON{string(e.Op), string(e.Rule.Kind), e.Rule.Subject, e.Rule.Value})
	}
	return struct {
		Seq      uint64            `json:"seq"`
		Time     time.Time         `json:"time"`
		Kind     audit.Kind        `json:"kind"`
		Fields   map[string]string `json:"fields"`
		Edits    []editJSON        `json:"edits"`
		Revision uint64            `json:"revision"`
		ID       string            `json:"id"`
		Prev     string            `json:"prev"`
	}{r.Seq, r.Time, r.Kind, r.Fields, edits, r.Revision, hex.EncodeToString(r.ID[:]), hex.EncodeToString(r.Prev[:])}
}

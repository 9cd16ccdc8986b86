package auditcheck_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"teekms/cmd/kmsctl/internal/auditcheck"
	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
	"teekms/internal/keys"
)

// world is a KMS with a log, and the options that know its root key.
type world struct {
	roots   *keys.Roots
	id      audit.Identity
	store   *audittest.Store
	log     *audit.Log
	options auditcheck.Options
}

func newWorld(tb testing.TB, records int) *world {
	tb.Helper()
	roots, err := keys.NewRoots()
	if err != nil {
		tb.Fatal(err)
	}
	w := &world{roots: roots, store: audittest.NewStore()}
	if w.id, err = audit.IdentityOf(roots); err != nil {
		tb.Fatal(err)
	}
	public, err := x509.ParsePKIXPublicKey(roots.CAPublic())
	if err != nil {
		tb.Fatal(err)
	}
	w.options = auditcheck.Options{Root: public.(*ecdsa.PublicKey), SPKI: roots.CAPublic()}
	w.log = w.open(tb)
	w.append(tb, records)
	return w
}

// open opens the log as a KMS does that was started anew.
func (w *world) open(tb testing.TB) *audit.Log {
	return audittest.NewLog(tb, w.store, func(c *audit.Config) { c.Identity = w.id })
}

func (w *world) append(tb testing.TB, n int) {
	tb.Helper()
	for range n {
		seq := len(w.store.State().Rows)
		if _, err := w.log.Append(tb.Context(), audit.Event{Kind: audit.ReleaseAppKey, Fields: map[string]string{"n": fmt.Sprint(seq)}}); err != nil {
			tb.Fatal(err)
		}
	}
}

func (w *world) checkpoint(tb testing.TB) string {
	tb.Helper()
	text, err := w.log.Checkpoint(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

// source shows the rows of a store under a head, whoever changed them.
type source struct {
	head auditcheck.Head
	rows []audit.Row
}

func (w *world) source(tb testing.TB) *source {
	key, signature := w.log.VerifierKey()
	return &source{auditcheck.Head{Checkpoint: w.checkpoint(tb), Key: key, KeySignature: signature}, w.store.State().Rows}
}

func (s *source) Head(context.Context) (auditcheck.Head, error) { return s.head, nil }

func (s *source) Records(_ context.Context, from uint64) ([][]byte, error) {
	var bodies [][]byte
	for i := from; i < uint64(len(s.rows)) && i < from+7; i++ {
		bodies = append(bodies, s.rows[i].Body)
	}
	return bodies, nil
}

// rechain changes the record at seq and has all that come after follow from it,
// as somebody can who has the database but no key.
func (s *source) rechain(tb testing.TB, seq int, change func(*audit.Record)) {
	tb.Helper()
	for i := seq; i < len(s.rows); i++ {
		r, err := audit.Parse(s.rows[i].Body)
		if err != nil {
			tb.Fatal(err)
		}
		if i == seq && change != nil {
			change(r)
		}
		r.Seq = uint64(i)
		if i > 0 {
			r.Prev = audit.Hash(s.rows[i-1].Body)
		}
		if s.rows[i].Body, err = r.Marshal(); err != nil {
			tb.Fatal(err)
		}
	}
}

func lie(r *audit.Record) { r.Fields = map[string]string{"n": "never"} }

func TestHonestLogsVerify(t *testing.T) {
	w := newWorld(t, 0)
	var older string
	for _, more := range []int{0, 1, 6, 1, 30} {
		w.append(t, more)
		o := w.options
		o.Older = older
		var last uint64
		o.Progress = func(done, total uint64) {
			if done <= last && done > 0 || done > total {
				t.Errorf("Progress(%d, %d) after %d", done, total, last)
			}
			last = done
		}
		r, err := auditcheck.Verify(t.Context(), w.source(t), o)
		if err != nil {
			t.Fatalf("Verify() of %d records = %v", len(w.store.State().Rows), err)
		}
		if n := uint64(len(w.store.State().Rows)); r.Checkpoint.Size != n || r.Kinds[audit.ReleaseAppKey] != n || (r.Older != nil) != (older != "") {
			t.Errorf("report = %+v, want %d records", r, n)
		}
		older = w.checkpoint(t)
	}
}

// TestDishonestLogsDoNot has a log of 20 records, an older checkpoint over 12,
// and everything that can be done to it without the key, or with an older state
// of the database.
func TestDishonestLogsDoNot(t *testing.T) {
	tests := []struct {
		name string
		// change changes what is shown; older is replaced where it returns one.
		change func(t *testing.T, w *world, s *source) (older string)
		want   auditcheck.Finding
		text   string
	}{
		{"one record rewritten", func(t *testing.T, _ *world, s *source) string {
			before := s.rows[15:]
			s.rows = append([]audit.Row{}, s.rows...)
			r, err := audit.Parse(s.rows[14].Body)
			if err != nil {
				t.Fatal(err)
			}
			lie(r)
			if s.rows[14].Body, err = r.Marshal(); err != nil {
				t.Fatal(err)
			}
			_ = before
			return ""
		}, auditcheck.Rewritten, "record 15 does not follow from record 14"},
		{"one record rewritten, and the chain after it", func(t *testing.T, _ *world, s *source) string {
			s.rechain(t, 14, lie)
			return ""
		}, auditcheck.Rewritten, "the 20 records follow from each other, and are not those that the checkpoint is over"},
		{"a record from before the older checkpoint rewritten, and the chain after it", func(t *testing.T, _ *world, s *source) string {
			s.rechain(t, 3, lie)
			return ""
		}, auditcheck.Forked, "its first 12 records are not those that the older checkpoint"},
		{"a record deleted, and the chain after it", func(t *testing.T, _ *world, s *source) string {
			s.rows = append(s.rows[:14:14], s.rows[15:]...)
			s.rechain(t, 14, nil)
			return ""
		}, auditcheck.Truncated, "record 19 is missing; the checkpoint is over 20"},
		{"the last records cut off", func(_ *testing.T, _ *world, s *source) string {
			s.rows = s.rows[:18]
			return ""
		}, auditcheck.Truncated, "record 18 is missing; the checkpoint is over 20"},
		{"two records in each other's place", func(_ *testing.T, _ *world, s *source) string {
			s.rows[5], s.rows[6] = s.rows[6], s.rows[5]
			return ""
		}, auditcheck.Reordered, "where record 5 belongs there is record 6"},
		{"a record put in", func(_ *testing.T, _ *world, s *source) string {
			s.rows = append(s.rows[:5:5], append([]audit.Row{s.rows[4]}, s.rows[5:]...)...)
			return ""
		}, auditcheck.Reordered, "where record 5 belongs there is record 4"},
		{"a record that is none", func(_ *testing.T, _ *world, s *source) string {
			s.rows[5].Body = []byte("record")
			return ""
		}, auditcheck.Malformed, "record 5: not a record"},
		{"an older state, with the KMS's own checkpoint over it", func(t *testing.T, w *world, s *source) string {
			older := w.checkpoint(t)
			w.setBack(t, 10, 0)
			*s = *w.source(t)
			return older
		}, auditcheck.Truncated, "it had 20 records at"},
		{"an older state that went on by itself", func(t *testing.T, w *world, s *source) string {
			older := w.checkpoint(t)
			w.setBack(t, 10, 15)
			*s = *w.source(t)
			return older
		}, auditcheck.Forked, "its first 20 records are not those that the older checkpoint"},
		{"an older state that went on to the same size", func(t *testing.T, w *world, s *source) string {
			older := w.checkpoint(t)
			w.setBack(t, 10, 10)
			*s = *w.source(t)
			return older
		}, auditcheck.Forked, "its 20 records are signed, and are not those of the older checkpoint, which is signed too"},
		{"a log that was cleared", func(t *testing.T, w *world, s *source) string {
			if _, err := w.log.Clear(t.Context(), audit.Event{}); err != nil {
				t.Fatal(err)
			}
			*s = *w.source(t)
			return ""
		}, auditcheck.Cleared, "its 12 records are not in this one"},
		{"a log from before it was cleared", func(t *testing.T, w *world, s *source) string {
			honest := *s
			if _, err := w.log.Clear(t.Context(), audit.Event{}); err != nil {
				t.Fatal(err)
			}
			older := w.checkpoint(t)
			*s = honest
			return older
		}, auditcheck.Forked, "an older state was put in its place"},
		{"a first record that says it cleared another", func(t *testing.T, w *world, s *source) string {
			s.rechain(t, 0, func(r *audit.Record) { r.Kind = audit.DatabaseCleared })
			return ""
		}, auditcheck.Rewritten, "was begun anew 0 times, which its first record (database_cleared) contradicts"},
		{"a checkpoint of another size", func(_ *testing.T, _ *world, s *source) string {
			s.head.Checkpoint = strings.Replace(s.head.Checkpoint, "\n20\n", "\n19\n", 1)
			return ""
		}, auditcheck.Uncertified, "invalid signature"},
		{"everything by another KMS", func(t *testing.T, _ *world, s *source) string {
			*s = *newWorld(t, 20).source(t)
			return ""
		}, auditcheck.Uncertified, "the key of the audit log is not certified by the root CA key: it is of"},
		{"another key under the name of this KMS", func(t *testing.T, w *world, s *source) string {
			w.id.Signer = keys.NewSecret(bytes.Repeat([]byte{3}, 32))
			forged := w.open(t)
			checkpoint, err := forged.Checkpoint(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.head.Checkpoint = checkpoint
			s.head.Key, _ = forged.VerifierKey()
			return ""
		}, auditcheck.Uncertified, "the signature does not hold"},
		{"an older checkpoint of somebody else", func(t *testing.T, _ *world, _ *source) string {
			return newWorld(t, 5).checkpoint(t)
		}, auditcheck.Uncertified, "the older checkpoint: opening checkpoint: note has no verifiable signatures"},
		{"an older checkpoint that is none", func(*testing.T, *world, *source) string { return "checkpoint" }, auditcheck.Malformed, "the older checkpoint: opening checkpoint: malformed note"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, 12)
			o := w.options
			o.Older = w.checkpoint(t)
			w.append(t, 8)
			s := w.source(t)
			if older := tt.change(t, w, s); older != "" {
				o.Older = older
			}
			_, err := auditcheck.Verify(t.Context(), s, o)
			e, ok := errors.AsType[*auditcheck.Error](err)
			if !ok || e.Finding != tt.want || !strings.Contains(e.Text, tt.text) || !auditcheck.IsFinding(err) {
				t.Errorf("Verify() = %v, want %s: %s", err, tt.want, tt.text)
			}
			// An export of it has no end, and so does not verify either.
			var file bytes.Buffer
			if _, err := auditcheck.Export(t.Context(), &file, s, o); err == nil {
				t.Error("Export() = nil error, want a finding")
			}
			if file.Len() > 0 {
				if _, err := auditcheck.Verify(t.Context(), exported(file.Bytes()), w.options); err == nil || !strings.Contains(err.Error(), "ends without a checkpoint") {
					t.Errorf("Verify() of its export = %v, want that it ends without a checkpoint", err)
				}
			}
		})
	}
}

// setBack puts the database in the state that it had with n records, and has a
// KMS that was started anew append more.
func (w *world) setBack(tb testing.TB, n, more int) {
	tb.Helper()
	other := audittest.NewStore()
	l := audittest.NewLog(tb, other, func(c *audit.Config) { c.Identity = w.id })
	for _, r := range w.store.Records(tb)[:n] {
		if _, err := l.Append(tb.Context(), audit.Event{ID: r.ID, Time: r.Time, Kind: r.Kind, Fields: r.Fields}); err != nil {
			tb.Fatal(err)
		}
	}
	w.store.SetState(other.State())
	w.log = w.open(tb)
	w.append(tb, more)
}

func exported(text []byte) *auditcheck.File {
	return auditcheck.OpenFile(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil })
}

func export(tb testing.TB, w *world) []byte {
	tb.Helper()
	var file bytes.Buffer
	if _, err := auditcheck.Export(tb.Context(), &file, w.source(tb), w.options); err != nil {
		tb.Fatal(err)
	}
	return file.Bytes()
}

func TestExportsVerifyOffline(t *testing.T) {
	w := newWorld(t, 12)
	o := w.options
	o.Older = w.checkpoint(t)
	w.append(t, 8)
	f := exported(export(t, w))
	defer f.Close()
	r, err := auditcheck.Verify(t.Context(), f, o)
	if err != nil || r.Checkpoint.Size != 20 || r.Older.Size != 12 {
		t.Fatalf("Verify() = %+v, %v, want 20 records", r, err)
	}
	again := export(t, w) // the same but for the time of the checkpoint
	if a, b := bytes.Split(export(t, w), []byte("\n")), bytes.Split(again, []byte("\n")); len(a) != 23 || !bytes.Equal(a[5], b[5]) {
		t.Errorf("%d lines, want a header, 20 records, a checkpoint", len(a)-1)
	}
}

func TestExportsThatWereChangedDoNot(t *testing.T) {
	w := newWorld(t, 20)
	lines := strings.SplitAfter(string(export(t, w)), "\n")
	swap := func(i, j int) string {
		l := append([]string{}, lines...)
		l[i], l[j] = l[j], l[i]
		return strings.Join(l, "")
	}
	without := func(i, j int) string { return strings.Join(append(append([]string{}, lines[:i]...), lines[j:]...), "") }
	replace := func(i int, with string) string {
		l := append([]string{}, lines...)
		l[i] = with
		return strings.Join(l, "")
	}
	tests := []struct {
		name, file string
		want       auditcheck.Finding
		text       string
	}{
		{"nothing", "", auditcheck.Malformed, "is no export"},
		{"another file", "{\"a\":1}\n", auditcheck.Malformed, "no JSON of an export"},
		{"no JSON", "hello\n", auditcheck.Malformed, "no JSON of an export"},
		{"another format", replace(0, "{\"format\":\"teekms audit export v2\"}\n"), auditcheck.Malformed, "is no export"},
		{"cut short", without(15, len(lines)), auditcheck.Truncated, "ends without a checkpoint"},
		{"cut in a line", strings.Join(lines, "")[:2000], auditcheck.Malformed, "no JSON of an export"},
		{"lines in each other's place", swap(5, 6), auditcheck.Reordered, "record 4 is not where it belongs"},
		{"a line left out", without(5, 6), auditcheck.Reordered, "record 4 is not where it belongs"},
		{"the last record left out", without(20, 21), auditcheck.Truncated, "record 19 is missing"},
		{"more after the checkpoint", strings.Join(lines, "") + lines[20], auditcheck.Malformed, "more after the checkpoint"},
		{"an endless line", lines[0] + strings.Repeat(" ", 3<<20), auditcheck.Malformed, "too long"},
		{"a record that was changed", replace(8, strings.Replace(lines[8], "\"body\":\"", "\"body\":\"AAAA", 1)), auditcheck.Malformed, "record 7: not a record"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := auditcheck.Verify(t.Context(), exported([]byte(tt.file)), w.options)
			e, ok := errors.AsType[*auditcheck.Error](err)
			if !ok || e.Finding != tt.want || !strings.Contains(e.Text, tt.text) {
				t.Errorf("Verify() = %v, want %s: %s", err, tt.want, tt.text)
			}
		})
	}
}

func proof(tb testing.TB, w *world, seq uint64) *auditcheck.Proof {
	tb.Helper()
	s := w.source(tb)
	row, _, path, err := w.log.ProveRecord(tb.Context(), seq, 0)
	if err != nil {
		tb.Fatal(err)
	}
	return &auditcheck.Proof{Seq: seq, Body: row.Body, Path: path, Head: s.head}
}

func TestProofsStandAlone(t *testing.T) {
	w := newWorld(t, 20)
	text, err := proof(t, w, 13).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	p, err := auditcheck.ParseProof(text)
	if err != nil {
		t.Fatal(err)
	}
	r, c, err := p.Verify(w.options)
	if err != nil || r.Seq != 13 || r.Fields["n"] != "13" || c.Size != 20 {
		t.Fatalf("Verify() = %v, %v, %v", r, c, err)
	}
	refuse := func(name string, want auditcheck.Finding, change func(*auditcheck.Proof)) {
		t.Helper()
		p := proof(t, w, 13)
		change(p)
		_, _, err := p.Verify(w.options)
		if e, ok := errors.AsType[*auditcheck.Error](err); !ok || e.Finding != want {
			t.Errorf("%s: Verify() = %v, want %s", name, err, want)
		}
	}
	refuse("another record", auditcheck.Rewritten, func(p *auditcheck.Proof) { p.Seq, p.Body = 12, w.store.State().Rows[12].Body })
	refuse("a hash of another", auditcheck.Rewritten, func(p *auditcheck.Proof) { p.Path[1] = tlog.Hash{} })
	refuse("a hash too few", auditcheck.Rewritten, func(p *auditcheck.Proof) { p.Path = p.Path[1:] })
	refuse("another number", auditcheck.Malformed, func(p *auditcheck.Proof) { p.Seq = 12 })
	refuse("no record", auditcheck.Malformed, func(p *auditcheck.Proof) { p.Body = nil })
	refuse("another KMS's", auditcheck.Uncertified, func(p *auditcheck.Proof) { p.Head = newWorld(t, 20).source(t).head })
	for name, change := range map[string]func(map[string]any){
		"another format": func(m map[string]any) { m["format"] = "x" },
		"an unknown key": func(m map[string]any) { m["x"] = 1 },
		"a short hash":   func(m map[string]any) { m["proof"] = []string{"AAAA"} },
		"no base64":      func(m map[string]any) { m["body"] = "!" },
	} {
		var m map[string]any
		if err := json.Unmarshal(text, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		changed, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := auditcheck.ParseProof(changed); !auditcheck.IsFinding(err) {
			t.Errorf("%s: ParseProof() = %v, want a finding", name, err)
		}
	}
}

func TestContinues(t *testing.T) {
	w := newWorld(t, 12)
	prove := func(ctx context.Context, from, to uint64) ([]tlog.Hash, error) {
		_, path, err := w.log.ProveTree(ctx, from, to)
		return path, err
	}
	o := w.options
	o.Older = w.checkpoint(t)
	w.append(t, 8)
	h, err := auditcheck.Continues(t.Context(), w.source(t), prove, o)
	if err != nil || !strings.Contains(h.Checkpoint, "\n20\n") {
		t.Fatalf("Continues() = %v, %v, want the checkpoint over 20", h, err)
	}
	o.Older = w.checkpoint(t)
	w.setBack(t, 10, 15)
	_, err = auditcheck.Continues(t.Context(), w.source(t), prove, o)
	if e, ok := errors.AsType[*auditcheck.Error](err); !ok || e.Finding != auditcheck.Forked {
		t.Errorf("Continues() of a fork = %v, want forked", err)
	}
}

func FuzzFile(f *testing.F) {
	w := newWorld(f, 3)
	good := export(f, w)
	f.Add(good)
	f.Add(good[:len(good)-10])
	f.Add([]byte("{\"format\":\"teekms audit export v1\"}\n{\"checkpoint\":\"\",\"key\":\"\",\"key_signature\":null}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := auditcheck.Verify(context.Background(), exported(text), w.options)
		if err == nil && r.Checkpoint.Size > 3 {
			t.Errorf("Verify() takes %d records, and 3 were signed", r.Checkpoint.Size)
		}
		if err != nil && !auditcheck.IsFinding(err) {
			t.Errorf("Verify() = %v, want a finding", err)
		}
	})
}

func FuzzParseProof(f *testing.F) {
	w := newWorld(f, 3)
	good, err := proof(f, w, 1).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"format":"teekms audit proof v1"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := auditcheck.ParseProof(text)
		if err != nil {
			return
		}
		if r, _, err := p.Verify(w.options); err == nil && r.Seq > 2 {
			t.Errorf("Verify() takes record %d, and 3 were signed", r.Seq)
		}
	})
}

// TestNoChangeGoesUnnoticed changes the rows of a log at random, with the chain
// made anew or not: nothing but the log itself verifies.
func TestNoChangeGoesUnnoticed(t *testing.T) {
	w := newWorld(t, 25)
	honest := w.source(t)
	r := rand.New(rand.NewPCG(1, 2))
	changes := []func(s *source, i, j int){
		func(s *source, i, _ int) { s.rows[i].Body[r.IntN(len(s.rows[i].Body))] ^= 1 << r.IntN(8) },
		func(s *source, i, _ int) { s.rows[i].Body = s.rows[i].Body[:r.IntN(len(s.rows[i].Body))] },
		func(s *source, i, _ int) { s.rows = append(s.rows[:i], s.rows[i+1:]...) },
		func(s *source, i, j int) { s.rows[i], s.rows[j] = s.rows[j], s.rows[i] },
		func(s *source, i, j int) { s.rows[i].Body = bytes.Clone(s.rows[j].Body) },
		func(s *source, i, _ int) { s.rows = s.rows[:i] },
		func(s *source, i, _ int) { s.rechain(t, i, lie) },
		func(s *source, i, j int) {
			s.rows[i].Body = bytes.Clone(s.rows[j].Body)
			s.rechain(t, i, nil)
		},
	}
	for n := range 2000 {
		state := audittest.State{Rows: honest.rows}
		s := &source{honest.head, state.Clone().Rows}
		i, j := r.IntN(len(s.rows)), r.IntN(len(s.rows))
		if i == j {
			continue
		}
		changes[n%len(changes)](s, i, j)
		if _, err := auditcheck.Verify(t.Context(), s, w.options); !auditcheck.IsFinding(err) {
			t.Fatalf("Verify() after change %d of record %d (and %d) = %v, want a finding", n%len(changes), i, j, err)
		}
	}
}

package kms_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/gen/kms/v1/kmsv1connect"
	"teekms/internal/attest/simtd"
	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
	authzregistry "teekms/internal/authz/registry"
	"teekms/internal/keys"
	"teekms/internal/osimage"
	"teekms/internal/ratls"
	"teekms/internal/registry"
	"teekms/internal/rpc"
	"teekms/internal/storage"
	"teekms/services/kms"
)

// registryRig is an Admin service with a registry, and a client that shows the
// token.
type registryRig struct {
	kmsv1connect.AdminClient
	store  *audittest.Store
	log    *audit.Log
	policy *registry.Policy
	// url is where it listens, with credentials.
	url string
}

func newRegistryRig(tb testing.TB, store *audittest.Store, log *audit.Log) *registryRig {
	tb.Helper()
	policy, err := registry.New(registry.Config{Store: store, Committer: kms.RegistryChanges(log)})
	if err != nil {
		tb.Fatal(err)
	}
	cr := newCredentials(tb, kms.CredentialsConfig{Token: keys.NewSecret([]byte(adminToken)), Htpasswd: []byte(htpasswdLine(tb, "ops", "pw"))})
	url := "http://" + start(tb, adminMux(tb, kms.AdminConfig{Images: &cleared{}, Audit: log, Registry: policy}, cr), nil)
	client := kmsv1connect.NewAdminClient(&http.Client{Transport: bearer{http.DefaultTransport}}, url)
	return &registryRig{AdminClient: client, store: store, log: log, policy: policy, url: url}
}

func anyRegistryRig(tb testing.TB) *registryRig {
	tb.Helper()
	store := audittest.NewStore()
	return newRegistryRig(tb, store, audittest.NewLog(tb, store))
}

// edit is "op kind value" or "op kind subject value", with "op kind" for
// everything of a kind.
func edit(line string) *kmsv1.RegistryEdit {
	f := strings.Fields(line)
	r := &kmsv1.RegistryRule{Kind: f[1]}
	switch len(f) {
	case 3:
		r.Value = f[2]
	case 4:
		r.Subject, r.Value = f[2], f[3]
	}
	return &kmsv1.RegistryEdit{Op: f[0], Rule: r}
}

func change(lines ...string) *kmsv1.UpdateRegistryRequest {
	r := &kmsv1.UpdateRegistryRequest{}
	for _, l := range lines {
		r.Edits = append(r.Edits, edit(l))
	}
	return r
}

func (r *registryRig) must(tb testing.TB, lines ...string) *kmsv1.UpdateRegistryResponse {
	tb.Helper()
	res, err := r.UpdateRegistry(tb.Context(), change(lines...))
	if err != nil {
		tb.Fatalf("UpdateRegistry(%q) = %v", lines, err)
	}
	return res
}

func ruleLines(list []*kmsv1.RegistryRule) []string {
	out := []string{}
	for _, r := range list {
		out = append(out, strings.Join(strings.Fields(fmt.Sprint(r.GetKind(), " ", r.GetSubject(), " ", r.GetValue(), " ", r.GetRevision())), " "))
	}
	return out
}

func TestUpdateRegistryRecordsWhatItChanges(t *testing.T) {
	r := anyRegistryRig(t)
	hash := strings.Repeat("ab", 32)
	req := change("add os_image 0x"+strings.ToUpper(hash), "add gateway any")
	req.Comment = "release 1.2"
	res, err := r.UpdateRegistry(t.Context(), req)
	if err != nil || res.GetRevision() != 1 || res.GetAuditSeq() != 0 {
		t.Fatalf("UpdateRegistry() = %v, %v, want revision 1 and record 0", res, err)
	}
	for _, as := range []struct{ name, password, by string }{{"ops", "pw", "user ops"}, {"somebody", adminToken, "token"}} {
		client := kmsv1connect.NewAdminClient(&http.Client{Transport: basic{as.name, as.password}}, r.url)
		if _, err := client.UpdateRegistry(t.Context(), change("add tcb_status UpToDate")); err != nil {
			t.Fatal(err)
		}
		records := r.store.Records(t)
		if by := records[len(records)-1].Fields["by"]; by != as.by {
			t.Errorf("recorded as of %q, want %q", by, as.by)
		}
	}
	// A listener that asks for nothing knows nobody.
	open, err := kms.NewAdmin(kms.AdminConfig{Images: &cleared{}, Audit: r.log, Registry: r.policy})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open.UpdateRegistry(t.Context(), change("add tcb_status any")); err != nil {
		t.Fatal(err)
	}
	if by := r.store.Records(t)[3].Fields["by"]; by != "no credential" {
		t.Errorf("recorded as of %q, want no credential", by)
	}
	first := r.store.Records(t)[0]
	if first.Kind != audit.RegistryChange || first.Fields["comment"] != "release 1.2" || first.Fields["by"] != "token" || first.Fields["request_id"] == "" || first.Revision != 1 {
		t.Errorf("record %+v, want who, why and the revision", first)
	}
	want := []registry.Edit{
		{Op: registry.Add, Rule: registry.Rule{Kind: registry.OSImage, Value: hash}},
		{Op: registry.RemoveAll, Rule: registry.Rule{Kind: registry.Gateway}},
		{Op: registry.Add, Rule: registry.Rule{Kind: registry.Gateway, Value: "any"}},
	}
	if diff := cmp.Diff(want, first.Edits); diff != "" {
		t.Errorf("recorded edits (-want +got)\n%s", diff)
	}
}

// basic shows a name and a password.
type basic struct{ name, password string }

func (b basic) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.SetBasicAuth(b.name, b.password)
	return http.DefaultTransport.RoundTrip(r)
}

func TestRegistryRefusesWithReason(t *testing.T) {
	r := anyRegistryRig(t)
	r.must(t, "add tcb_status UpToDate")
	one, two := uint64(1), uint64(2)
	update := func(change func(*kmsv1.UpdateRegistryRequest), lines ...string) func() error {
		return func() error {
			req := &kmsv1.UpdateRegistryRequest{}
			for _, l := range lines {
				req.Edits = append(req.Edits, edit(l))
			}
			change(req)
			_, err := r.UpdateRegistry(t.Context(), req)
			return err
		}
	}
	as := func(*kmsv1.UpdateRegistryRequest) {}
	list := func(req *kmsv1.ListRegistryRequest) func() error {
		return func() error { _, err := r.ListRegistry(t.Context(), req); return err }
	}
	explain := func(req *kmsv1.ExplainRegistryRequest) func() error {
		return func() error { _, err := r.ExplainRegistry(t.Context(), req); return err }
	}
	workload := func(change func(*kmsv1.RegistryWorkload)) func() error {
		w := &kmsv1.RegistryWorkload{Subject: "app"}
		change(w)
		return explain(&kmsv1.ExplainRegistryRequest{Workload: w})
	}
	id := strings.Repeat("01", 20)
	tests := []struct {
		name string
		call func() error
		code connect.Code
		want string
	}{
		{"no edits", update(as), connect.CodeInvalidArgument, "edits: a change needs at least one edit"},
		{"an edit without rule", update(func(r *kmsv1.UpdateRegistryRequest) { r.Edits = []*kmsv1.RegistryEdit{{Op: "add"}} }), connect.CodeInvalidArgument, `edits[0].rule.kind: "" is none of advisory, app, `},
		{"an edit of nil", update(func(r *kmsv1.UpdateRegistryRequest) { r.Edits = []*kmsv1.RegistryEdit{nil} }), connect.CodeInvalidArgument, `edits[0].op: "" is none of add, remove, remove_all`},
		{"another operation", update(as, "add tcb_status UpToDate", "set tcb_status UpToDate"), connect.CodeInvalidArgument, `edits[1].op: "set" is none of add, remove, remove_all`},
		{"a wrong value", update(as, "add os_image 00"), connect.CodeInvalidArgument, "edits[0].rule.value: 2 characters, want 64 hexadecimal digits"},
		{"a wrong subject", update(as, "add app_device 00 any"), connect.CodeInvalidArgument, "edits[0].rule.subject: 2 characters, want 40"},
		{"too many edits", update(func(r *kmsv1.UpdateRegistryRequest) {
			for range 4097 {
				r.Edits = append(r.Edits, edit("add tcb_status any"))
			}
		}), connect.CodeInvalidArgument, "edits: a change has at most 4096 edits"},
		{"a long comment", update(func(r *kmsv1.UpdateRegistryRequest) { r.Comment = strings.Repeat("a", 513) }, "add tcb_status any"), connect.CodeInvalidArgument, "comment: a comment has at most 512 bytes"},
		{"a revision to come", update(func(r *kmsv1.UpdateRegistryRequest) { r.ExpectedRevision = &two }, "add tcb_status any"), connect.CodeAborted, "expected_revision: the registry has another revision than expected"},
		{"the revision that is", update(func(r *kmsv1.UpdateRegistryRequest) { r.ExpectedRevision = &one }, "add tcb_status any"), 0, ""},
		{"a revision that was", update(func(r *kmsv1.UpdateRegistryRequest) { r.ExpectedRevision = &one }, "add tcb_status any"), connect.CodeAborted, "expected_revision: the registry has another revision"},

		{"another kind", list(&kmsv1.ListRegistryRequest{Kind: "apps"}), connect.CodeInvalidArgument, "kind: there is no such kind of rules"},
		{"a subject for a kind that has none", list(&kmsv1.ListRegistryRequest{Kind: "app", Subject: id}), connect.CodeInvalidArgument, "subject: rules of this kind have none"},
		{"a subject that is none", list(&kmsv1.ListRegistryRequest{Subject: "x"}), connect.CodeInvalidArgument, "subject: 1 characters, want 40"},
		{"a page token that is none", list(&kmsv1.ListRegistryRequest{PageToken: "!"}), connect.CodeInvalidArgument, "page_token: not a next_page_token"},
		{"a page token of nothing", list(&kmsv1.ListRegistryRequest{PageToken: "YXBwLy9h"}), connect.CodeInvalidArgument, "page_token: not a next_page_token"},

		{"nothing to explain", explain(&kmsv1.ExplainRegistryRequest{}), connect.CodeInvalidArgument, "last_denials: want 1 to 100, or a workload"},
		{"too much to explain", explain(&kmsv1.ExplainRegistryRequest{LastDenials: 101}), connect.CodeInvalidArgument, "last_denials: want 1 to 100"},
		{"both to explain", explain(&kmsv1.ExplainRegistryRequest{LastDenials: 1, Workload: &kmsv1.RegistryWorkload{Subject: "app"}}), connect.CodeInvalidArgument, "last_denials: give a workload or this"},
		{"another subject", workload(func(w *kmsv1.RegistryWorkload) { w.Subject = "gateway" }), connect.CodeInvalidArgument, "workload.subject: want app or kms"},
		{"a long app id", workload(func(w *kmsv1.RegistryWorkload) { w.AppId = make([]byte, 65) }), connect.CodeInvalidArgument, "workload.app_id: 65 bytes, want at most 64"},
		{"a long device id", workload(func(w *kmsv1.RegistryWorkload) { w.DeviceId = make([]byte, 65) }), connect.CodeInvalidArgument, "workload.device_id: 65 bytes"},
		{"a long TCB status", workload(func(w *kmsv1.RegistryWorkload) { w.TcbStatus = strings.Repeat("a", 129) }), connect.CodeInvalidArgument, "workload.tcb_status: 129 bytes, want at most 128"},
		{"a long advisory", workload(func(w *kmsv1.RegistryWorkload) { w.AdvisoryIds = []string{strings.Repeat("a", 129)} }), connect.CodeInvalidArgument, "workload.advisory_ids: 129 bytes, want at most 128"},
		{"too many advisories", workload(func(w *kmsv1.RegistryWorkload) { w.AdvisoryIds = make([]string, 257) }), connect.CodeInvalidArgument, "workload.advisory_ids: 257 of them, want at most 256"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.call()
			if tt.code == 0 {
				if err != nil {
					t.Errorf("= %v, want no error", err)
				}
				return
			}
			if connect.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.code.String()+": "+tt.want) {
				t.Errorf("= %v, want %v: %s", err, tt.code, tt.want)
			}
		})
	}
}

func TestListRegistryGivesEveryRuleOnce(t *testing.T) {
	r := anyRegistryRig(t)
	a, b := strings.Repeat("0a", 20), strings.Repeat("0b", 20)
	h1, h2 := strings.Repeat("01", 32), strings.Repeat("02", 32)
	r.must(t, "add tcb_status UpToDate", "add os_image "+h2, "add os_image "+h1, "add app "+b, "add app_compose "+b+" "+h1)
	r.must(t, "add app "+a, "add app_compose "+a+" any", "add app_device "+a+" "+h2, "add kms any")
	all := []string{
		"app " + a + " 2", "app " + b + " 1", "app_compose " + a + " any 2", "app_compose " + b + " " + h1 + " 1", "app_device " + a + " " + h2 + " 2",
		"kms any 2", "os_image " + h1 + " 1", "os_image " + h2 + " 1", "tcb_status UpToDate 1",
	}
	tests := []struct {
		name string
		req  *kmsv1.ListRegistryRequest
		want []string
	}{
		{"everything", &kmsv1.ListRegistryRequest{}, all},
		{"a kind", &kmsv1.ListRegistryRequest{Kind: "os_image"}, all[6:8]},
		{"an application", &kmsv1.ListRegistryRequest{Subject: "0x" + strings.ToUpper(a)}, []string{all[2], all[4]}},
		{"a kind of an application", &kmsv1.ListRegistryRequest{Kind: "app_compose", Subject: b}, all[3:4]},
		{"nothing", &kmsv1.ListRegistryRequest{Kind: "advisory"}, []string{}},
	}
	for _, tt := range tests {
		for size := range uint32(len(all) + 2) {
			req := proto.CloneOf(tt.req)
			req.PageSize = size
			got, pages := []string{}, 0
			for {
				res, err := r.ListRegistry(t.Context(), req)
				if err != nil || res.GetRevision() != 2 {
					t.Fatalf("ListRegistry(%v) = %v, %v, want revision 2", req, res, err)
				}
				got, pages = append(got, ruleLines(res.GetRules())...), pages+1
				if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
					break
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s in pages of %d (-want +got)\n%s", tt.name, size, diff)
			}
			if want := pagesOf(len(tt.want), int(size)); pages != want {
				t.Errorf("%s in pages of %d: %d pages, want %d", tt.name, size, pages, want)
			}
		}
	}
}

func pagesOf(n, size int) int {
	if size == 0 || n == 0 {
		return 1
	}
	return (n + size - 1) / size
}

func TestRegistryWithoutDatabase(t *testing.T) {
	cr := newCredentials(t, kms.CredentialsConfig{Token: keys.NewSecret([]byte(adminToken))})
	url := "http://" + start(t, adminMux(t, kms.AdminConfig{Images: &cleared{}}, cr), nil)
	client := kmsv1connect.NewAdminClient(&http.Client{Transport: bearer{http.DefaultTransport}}, url)
	_, err1 := client.UpdateRegistry(t.Context(), change("add tcb_status any"))
	_, err2 := client.ListRegistry(t.Context(), &kmsv1.ListRegistryRequest{})
	_, err3 := client.ExplainRegistry(t.Context(), &kmsv1.ExplainRegistryRequest{LastDenials: 1})
	for _, err := range []error{err1, err2, err3} {
		if connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "the database is not open") {
			t.Errorf("= %v, want unavailable: the database is not open", err)
		}
	}
	r := anyRegistryRig(t)
	for cause, want := range map[error]string{
		fmt.Errorf("dial db.internal: %w", storage.ErrUnavailable): "unavailable: the database is not available",
		fmt.Errorf("row 7: %w", storage.ErrIntegrity):              "data_loss: the database was tampered with",
		errors.New("secret cause"):                                 "internal: internal error (id ",
	} {
		r.store.Break(cause)
		if _, err := r.ListRegistry(t.Context(), &kmsv1.ListRegistryRequest{}); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("ListRegistry() = %v, want %s", err, want)
		}
	}
}

// withRegistry makes the registry in the store of w its authority.
func withRegistry(t *testing.T) func(*world) {
	t.Helper()
	return func(w *world) {
		policy, err := registry.New(registry.Config{Store: w.store})
		if err != nil {
			t.Fatal(err)
		}
		if w.config.Authorizer, err = authzregistry.New(authzregistry.Config{Policy: policy, Log: zap.NewNop()}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDenialsAreExplained denies a workload over the wire until every rule is
// there, and has each denial explained.
func TestDenialsAreExplained(t *testing.T) {
	w := newWorld(t, withRegistry(t))
	r := newRegistryRig(t, w.store, audittest.NewLog(t, w.store))
	m := vectorApp(t)
	m.ComposeHash, m.OSImageHash = fill(32, 7), fill(32, 8)
	td := w.workload(t, m)
	attested := certificate(t, td, ratls.Gen8)
	ask := func() outcome {
		_, end := invoke[kmsv1.GetAppKeyRequest, kmsv1.GetAppKeyResponse](t, w.client(t, attested), w.url, "connect json", "GetAppKey", &kmsv1.GetAppKeyRequest{})
		return end
	}
	app, hash := hex.EncodeToString(m.AppID), func(b []byte) string { return hex.EncodeToString(b) }
	device := deviceOf(t, w, td)
	steps := []struct{ reason, rule string }{
		{"TCB status is not allowed", "add tcb_status UpToDate"},
		{"OS image is not allowed", "add os_image " + hash(m.OSImageHash)},
		{"app not registered", "add app " + app},
		{"compose hash not allowed", "add app_compose " + app + " " + hash(m.ComposeHash)},
		{"app is not allowed to boot on this device", "add app_device " + app + " " + device},
	}
	for i, s := range steps {
		if got, want := ask(), (outcome{connect.CodePermissionDenied, "App not allowed: Boot denied: " + s.reason}); got != want {
			t.Fatalf("GetAppKey = %+v, want %+v", got, want)
		}
		res, err := r.ExplainRegistry(t.Context(), &kmsv1.ExplainRegistryRequest{LastDenials: 1})
		if err != nil || len(res.GetExplanations()) != 1 {
			t.Fatalf("ExplainRegistry() = %v, %v, want one explanation", res, err)
		}
		e := res.GetExplanations()[0]
		if e.GetAllowed() || e.AuditSeq == nil || e.GetRevision() != uint64(i) || !strings.HasSuffix(e.GetDeniedReason(), s.reason) {
			t.Errorf("ExplainRegistry() = %v, want the denial at revision %d: %s", e, i, s.reason)
		}
		want := &kmsv1.RegistryWorkload{
			Subject: "app", AppId: m.AppID, ComposeHash: m.ComposeHash, OsImageHash: m.OSImageHash,
			MrAggregated: e.GetWorkload().GetMrAggregated(), DeviceId: unhex(t, device), TcbStatus: "UpToDate",
		}
		if diff := cmp.Diff(want, e.GetWorkload(), protocmp.Transform()); diff != "" || len(want.GetMrAggregated()) != 32 {
			t.Errorf("explained workload (-want +got)\n%s", diff)
		}
		// The rule that is missing is the first that fails; asking with the
		// workload explains the same.
		for _, c := range e.GetChecks() {
			if !c.GetPassed() {
				if c.GetReason() != s.reason || c.GetWanted() == "" || c.GetSeen() == "" {
					t.Errorf("first failed check %v, want %s", c, s.reason)
				}
				break
			}
		}
		again, err := r.ExplainRegistry(t.Context(), &kmsv1.ExplainRegistryRequest{Workload: e.GetWorkload()})
		if err != nil {
			t.Fatal(err)
		}
		e.AuditSeq, e.DeniedReason = nil, ""
		if diff := cmp.Diff(e, again.GetExplanations()[0], protocmp.Transform()); diff != "" {
			t.Errorf("explanation of the same workload (-denial +workload)\n%s", diff)
		}
		r.must(t, s.rule)
	}
	if got := ask(); got != (outcome{}) {
		t.Fatalf("GetAppKey = %+v, want the keys", got)
	}
	// What was denied then would be allowed now, newest first.
	res, err := r.ExplainRegistry(t.Context(), &kmsv1.ExplainRegistryRequest{LastDenials: 100})
	if err != nil || len(res.GetExplanations()) != len(steps) {
		t.Fatalf("ExplainRegistry() = %v, %v, want %d explanations", res, err, len(steps))
	}
	for i, e := range res.GetExplanations() {
		if want := steps[len(steps)-1-i].reason; !e.GetAllowed() || !strings.HasSuffix(e.GetDeniedReason(), want) {
			t.Errorf("explanation %d = %v, want it allowed now and denied then: %s", i, e, want)
		}
	}
	// A database that is gone decides nothing, and gives nothing.
	w.store.Break(storage.ErrUnavailable)
	if got, want := ask(), (outcome{connect.CodeUnavailable, "authorization service unreachable"}); got != want {
		t.Errorf("GetAppKey without a database = %+v, want %+v", got, want)
	}
}

// deviceOf is the id of the platform that a workload runs on.
func deviceOf(t *testing.T, w *world, td *simtd.TD) string {
	t.Helper()
	c := certificate(t, td, ratls.Gen8)
	leaf, err := keys.ParseCertificate(keys.CertificatePEM(c.Certificate[0]))
	if err != nil {
		t.Fatal(err)
	}
	peer, err := w.appraiser.AppraiseCertificate(t.Context(), leaf)
	if err != nil {
		t.Fatal(err)
	}
	id := peer.Claims.DeviceID()
	return hex.EncodeToString(id[:])
}

// TestLastDenialsAreFoundBehindOtherRecords looks for denials far back, and not
// farther than it says.
func TestLastDenialsAreFoundBehindOtherRecords(t *testing.T) {
	r := anyRegistryRig(t)
	w := newWorld(t, func(w *world) { w.config.Audit = r.log })
	w.authority.set(deny(0, "")) // allows everybody
	w.images.set(osimage.ErrNotVerified)
	client := w.attested(t, vectorApp(t))
	ask := func() {
		invoke[kmsv1.GetAppKeyRequest, kmsv1.GetAppKeyResponse](t, client, w.url, "connect json", "GetAppKey", &kmsv1.GetAppKeyRequest{})
	}
	ask()
	for range 300 {
		if _, err := r.log.Append(t.Context(), audit.Event{Kind: audit.Start}); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	res, err := r.ExplainRegistry(t.Context(), &kmsv1.ExplainRegistryRequest{LastDenials: 3})
	if err != nil || len(res.GetExplanations()) != 2 {
		t.Fatalf("ExplainRegistry() = %v, %v, want two denials", res, err)
	}
	for i, seq := range []uint64{301, 0} {
		e := res.GetExplanations()[i]
		if e.GetAuditSeq() != seq || !strings.Contains(e.GetDeniedReason(), osimage.ErrNotVerified.Error()) {
			t.Errorf("explanation %d is of record %d, %q, want %d and the image", i, e.GetAuditSeq(), e.GetDeniedReason(), seq)
		}
	}
}

// FuzzPageToken holds that whatever is given for a page token is refused for
// that, or begins a page.
func FuzzPageToken(f *testing.F) {
	store := audittest.NewStore()
	log := audittest.NewLog(f, store)
	policy, err := registry.New(registry.Config{Store: store, Committer: kms.RegistryChanges(log)})
	if err != nil {
		f.Fatal(err)
	}
	admin, err := kms.NewAdmin(kms.AdminConfig{Images: &cleared{}, Audit: log, Registry: policy})
	if err != nil {
		f.Fatal(err)
	}
	for _, line := range []string{"add tcb_status UpToDate", "add tcb_status any", "add os_image any", "add advisory INTEL-SA-00001"} {
		if _, err := admin.UpdateRegistry(f.Context(), change(line)); err != nil {
			f.Fatal(err)
		}
	}
	first, err := admin.ListRegistry(f.Context(), &kmsv1.ListRegistryRequest{PageSize: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(first.GetNextPageToken(), "", "")
	f.Add(first.GetNextPageToken(), "app_device", strings.Repeat("01", 20))
	f.Add("", "tcb_status", "")
	f.Add("YXBwLy8", "app", "x")
	f.Fuzz(func(t *testing.T, token, kind, subject string) {
		res, err := admin.ListRegistry(t.Context(), &kmsv1.ListRegistryRequest{Kind: kind, Subject: subject, PageToken: token, PageSize: 2})
		if e, ok := errors.AsType[*rpc.FieldError](err); err != nil && (!ok || e.Reason == "") {
			t.Errorf("ListRegistry(%q, %q, %q) = %v, want a field and a reason", kind, subject, token, err)
		}
		if len(res.GetRules()) > 2 || res.GetNextPageToken() != "" && len(res.GetRules()) != 2 {
			t.Errorf("ListRegistry(%q, %q, %q) = %v, want at most a page", kind, subject, token, res)
		}
	})
}

package keystore_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"flag"
	"fmt"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/versioned"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

var update = flag.Bool("update", false, "write the directories of other KMSs in testdata anew")

// The root keys of the fixtures are those of published test vectors.
const (
	vectorPKCS8 = "308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420" +
		"f57527cea4ab7ffb49af99b158cdc0e3ec06398f528349ea236b7d2afe19cec1" +
		"a1440342000491f50522407ce29dce3ed7d31a15d80c1c42f13a23552d2b33a0ce09ee11e47b" +
		"ce95936f3e7f80d195f879e28e1b144ef37ac9ab8e36a690cbf930b775897b27"
	vectorK256 = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func vectorRoots(t testing.TB) *keys.Roots {
	t.Helper()
	block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: unhex(t, vectorPKCS8)})
	roots, err := keys.ParseRoots(block, unhex(t, vectorK256))
	if err != nil {
		t.Fatal(err)
	}
	return roots
}

// peer writes certificates as existing KMSs do: UTF8String names, a serial
// number that is a hash of the key, validity from 1975, no authority key id.
type peer struct {
	t *testing.T
	// old leaves key usage and path length out of CA certificates, and makes
	// every name a DNS name.
	old bool
}

func (p peer) certificate(subject []string, public *ecdsa.PublicKey, parent *x509.Certificate, signer *ecdsa.PrivateKey, extra ...pkix.Extension) []byte {
	p.t.Helper()
	point, err := public.Bytes()
	if err != nil {
		p.t.Fatal(err)
	}
	sum := sha256.Sum256(point)
	sum[0] &= 0x7f
	var name pkix.RDNSequence
	for i, arc := range []int{10, 3}[2-len(subject):] {
		name = append(name, pkix.RelativeDistinguishedNameSET{{
			Type: asn1.ObjectIdentifier{2, 5, 4, arc}, Value: asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(subject[i])},
		}})
	}
	raw, err := asn1.Marshal(name)
	if err != nil {
		p.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(sum[:20]),
		RawSubject:   raw,
		NotBefore:    time.Date(1975, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(2035, 11, 18, 10, 35, 0, 0, time.UTC),
	}
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid, template.MaxPathLen = true, true, -1
		if !p.old {
			template.MaxPathLen = 1
			template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		}
		parent = template
	} else {
		template.KeyUsage = x509.KeyUsageDigitalSignature
		template.DNSNames = subject
		template.ExtraExtensions = append([]pkix.Extension{keys.Extension(keys.ArcUsage, []byte(keys.UsageRPC))}, extra...)
		withoutID := *parent
		withoutID.SubjectKeyId = nil
		parent = &withoutID
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		p.t.Fatal(err)
	}
	return keys.CertificatePEM(der)
}

// write makes the directory of a peer: with a record whose Evidence the software
// TD made, in the form of the generation.
func (p peer) write(dir, domain string) {
	t := p.t
	t.Helper()
	roots := vectorRoots(t)
	root, err := keys.ParseKey(roots.CAPEM().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, data []byte) { writeFile(t, data, 0o644, dir, name) }
	putKey := func(name string, key *ecdsa.PrivateKey) {
		text, err := keys.KeyPEM(key)
		if err != nil {
			t.Fatal(err)
		}
		put(name, text.Bytes())
	}
	temp, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	rpc, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	put("root-ca.crt", p.certificate([]string{"Dstack", "Dstack KMS CA"}, &root.PublicKey, nil, root))
	put("tmp-ca.crt", p.certificate([]string{"Dstack", "Dstack Client Temp CA"}, &temp.PublicKey, nil, temp))
	ca, err := keys.ParseCertificate(readFile(t, dir, "root-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	put("rpc.crt", p.certificate([]string{domain}, &rpc.PublicKey, ca, root))
	putKey("root-ca.key", root)
	putKey("tmp-ca.key", temp)
	putKey("rpc.key", rpc)
	put("root-k256.key", unhex(t, vectorK256))
	put("rpc-domain", []byte(domain))
	put("bootstrap-info.json", p.record(roots))
}

func (p peer) record(roots *keys.Roots) []byte {
	t := p.t
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: filepath.Join(t.TempDir(), "td"), Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	evidence, err := td.Attest(t.Context(), attest.BootstrapReportData(roots.CAPublic(), roots.K256Public()))
	if err != nil {
		t.Fatal(err)
	}
	if p.old {
		return fmt.Appendf(nil, `{"ca_pubkey":"%x","k256_pubkey":"%x","quote":"%x","eventlog":"%x"}`,
			roots.CAPublic(), roots.K256Public(), evidence.Quote, evidence.EventLog)
	}
	v, err := versioned.New(evidence)
	if err != nil {
		t.Fatal(err)
	}
	wire, err := v.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, `{"ca_pubkey":"%x","k256_pubkey":"%x","attestation":"%x"}`, roots.CAPublic(), roots.K256Public(), wire)
}

// peerDirectory copies a stored directory of a peer, every file open to others.
func peerDirectory(t *testing.T, name string) string {
	t.Helper()
	stored := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(stored, 0o755); err != nil {
			t.Fatal(err)
		}
		peer{t, name == "older-peer"}.write(stored, "kms.example.com")
	}
	dir := t.TempDir()
	for _, file := range list(t, stored) {
		writeFile(t, readFile(t, stored, file), 0o644, dir, file)
	}
	return dir
}

func TestAdoption(t *testing.T) {
	for _, name := range []string{"older-peer", "newer-peer"} {
		t.Run(name, func(t *testing.T) {
			dir := peerDirectory(t, name)
			before := snapshot(t, dir)
			if len(before) != 9 {
				t.Fatalf("fixture has %d files, want the eight and rpc-domain", len(before))
			}
			core, logs := observer.New(zap.InfoLevel)
			s, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: clock, Log: zap.New(core)})
			if err != nil {
				t.Fatal(err)
			}
			if !s.Complete() || s.Domain() != "kms.example.com" || !s.Roots().Equal(vectorRoots(t)) {
				t.Errorf("complete = %v, domain = %q, want the peer's roots and domain", s.Complete(), s.Domain())
			}
			if got := changed(t, dir, before); len(got) != 0 {
				t.Errorf("changed = %v, want nothing", got)
			}
			for file, mode := range theEight() {
				if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode().Perm() != mode {
					t.Errorf("mode of %s = %v, %v, want %o", file, info.Mode(), err, mode)
				}
			}
			if got := logs.FilterMessage("a key file was open to other users").Len(); got != 4 {
				t.Errorf("open keys told %d times, want four: %v", got, logs.All())
			}
			checkAdoptedKeys(t, s)
			checkAdoptedRecord(t, s)
			checkAdoptedRenewal(t, s, dir)
		})
	}
}

// checkAdoptedKeys: the adopted KMS gives out the keys the peer gave.
func checkAdoptedKeys(t *testing.T, s *keystore.Store) {
	t.Helper()
	appID := unhex(t, "000102030405060708090a0b0c0d0e0f10111213")
	disk, err := s.Roots().AppDisk(appID, unhex(t, "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff00010203"))
	if err != nil || hex.EncodeToString(disk.Bytes()) != "5d3df11a5f50e3d19c2ff41fdfa0b3ef61f989933935d33c739dca202c7d5c2a" {
		t.Errorf("disk key = %x, %v, want the vector", disk.Bytes(), err)
	}
	key, err := s.Roots().AppK256(appID)
	if err != nil || hex.EncodeToString(key.Private.Bytes()) != "b9717d48c557a952466ade9d6fd1848385de73ae256ade618fd9a472c56a5a66" {
		t.Errorf("secp256k1 key = %x, %v, want the vector", key.Private.Bytes(), err)
	}
}

func checkAdoptedRecord(t *testing.T, s *keystore.Store) {
	t.Helper()
	info := s.Info()
	if info == nil || !bytes.Equal(info.CAPublic, s.Roots().CAPublic()) || !bytes.Equal(info.K256Public, s.Roots().K256Public()) {
		t.Fatalf("Info = %+v, want the record of these roots", info)
	}
	// The report data in the quote, at its place behind header and body.
	want := attest.BootstrapReportData(info.CAPublic, info.K256Public).Bytes()
	if len(info.Quote) < 632 || !bytes.Equal(info.Quote[568:632], want[:]) {
		t.Errorf("quote = %d bytes, want one over these keys", len(info.Quote))
	}
	if !bytes.HasPrefix(info.EventLog, []byte(`[{`)) {
		t.Errorf("event log = %.40q, want JSON", info.EventLog)
	}
}

func checkAdoptedRenewal(t *testing.T, s *keystore.Store, dir string) {
	t.Helper()
	before := snapshot(t, dir)
	cert, err := s.RenewRPC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"rpc.crt"}, changed(t, dir, before)); diff != "" {
		t.Errorf("renewal changed (-want +got):\n%s", diff)
	}
	root, err := keys.ParseCertificate(s.RootCAPEM())
	if err != nil || !bytes.Equal(cert.Leaf.RawIssuer, root.RawSubject) {
		t.Errorf("issuer = %x, %v, want the peer's root", cert.Leaf.RawIssuer, err)
	}
	out, err := exec.CommandContext(t.Context(), "openssl", "verify", "-attime", fmt.Sprint(clock().Unix()),
		"-CAfile", filepath.Join(dir, "root-ca.crt"), filepath.Join(dir, "rpc.crt")).CombinedOutput()
	if err != nil {
		t.Errorf("openssl verify = %s, %v", out, err)
	}
}

func TestAdoptionKeepsTheNameOfARootMadeAgain(t *testing.T) {
	// Certificates that the peer issued name their issuer byte by byte.
	dir := peerDirectory(t, "older-peer")
	old, err := keys.ParseCertificate(readFile(t, dir, "root-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	remove(t, dir, "root-ca.crt")
	again, err := keys.ParseCertificate(open(t, dir, nil).RootCAPEM())
	if err != nil || !bytes.Equal(again.RawSubject, old.RawSubject) {
		t.Errorf("subject = %x, %v, want %x", again.RawSubject, err, old.RawSubject)
	}
}

func TestDomain(t *testing.T) {
	tests := []struct {
		name       string
		configured string
		file       string
		inCert     string
		want       string
	}{
		{"configured goes first", "a.example", "b.example", "c.example", "a.example"},
		{"then rpc-domain", "", "b.example", "c.example", "b.example"},
		{"white space in rpc-domain is passed over", "", " b.example\r\n", "c.example", "b.example"},
		{"then the certificate's name", "", "", "c.example", "c.example"},
		{"an address that a peer wrote as a DNS name", "", "", "192.0.2.1", "192.0.2.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			peer{t, true}.write(dir, tt.inCert)
			writeFile(t, []byte(tt.file), 0o644, dir, "rpc-domain")
			s, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Domain: tt.configured, Now: clock})
			if err != nil || s.Domain() != tt.want {
				t.Fatalf("Open = %v, domain %q, want %q", err, s.Domain(), tt.want)
			}
			cert, err := s.RenewRPC(t.Context())
			if err != nil || cert.Leaf.VerifyHostname(tt.want) != nil {
				t.Errorf("RenewRPC = %v, names %v %v, want %s", err, cert.Leaf.DNSNames, cert.Leaf.IPAddresses, tt.want)
			}
		})
	}
}

func TestDomainIsTheCertificatesAddress(t *testing.T) {
	dir := t.TempDir()
	b, err := keystore.NewBundle(newRoots(t), "2001:db8::1", nil, clock())
	if err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir, nil).Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if got := open(t, dir, nil).Domain(); got != "2001:db8::1" {
		t.Errorf("Domain = %q, want the address in rpc.crt", got)
	}
}

func TestParseInfo(t *testing.T) {
	roots := vectorRoots(t)
	older, newer := peer{t, true}.record(roots), peer{t, false}.record(roots)
	broken := bytes.Replace(newer, []byte(`"attestation":"0000`), []byte(`"attestation":"0001`), 1)
	ours, err := keystore.MarshalInfo(&keystore.Info{CAPublic: roots.CAPublic(), K256Public: roots.K256Public(), Quote: []byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	replace := func(text []byte, old, new string) string {
		if !strings.Contains(string(text), old) {
			t.Fatalf("%.200s has no %s", text, old)
		}
		return strings.Replace(string(text), old, new, 1)
	}
	tests := []struct {
		name, text string
		want       string // empty: accepted
		keys       bool   // the public keys are returned with the error
	}{
		{"ours", string(ours), "", true},
		{"an older peer's", string(older), "", true},
		{"a newer peer's", string(newer), "", true},
		{"a newer peer's without attestation", `{"ca_pubkey":"` + hex.EncodeToString(roots.CAPublic()) + `","k256_pubkey":"` + hex.EncodeToString(roots.K256Public()) + `","attestation":""}`, "", true},
		{"attestation of another TEE", string(broken), "attestation: ", true},
		{"attestation that is no hex", replace(newer, `"attestation":"00`, `"attestation":"zz`), "attestation: encoding/hex: invalid byte", true},
		{"quote and attestation", replace(newer, `"attestation"`, `"quote":"00","attestation"`), "has both quote and attestation", true},
		{"hex with 0x", replace(older, `"k256_pubkey":"02`, `"k256_pubkey":"0x02`), "k256_pubkey has 68 characters, want 66 (hex) or 44 (base64)", false},
		{"base64 and hex mixed", replace(ours, `"ca_pubkey":"`, `"ca_pubkey":"!`), "ca_pubkey: illegal base64", false},
		{"hex of odd length", replace(older, `"quote":"`, `"quote":"0`), "quote: encoding/hex: odd length", false},
		{"no keys", `{}`, "k256_pubkey has 0 characters", false},
		{"null", `null`, "k256_pubkey has 0 characters", false},
		{"a number", `{"ca_pubkey":1}`, "not a bootstrap record", false},
		{"two records", string(ours) + string(ours), "not a bootstrap record", false},
		{"empty", ``, "not a bootstrap record", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			info, err := keystore.ParseInfo([]byte(tt.text))
			switch {
			case tt.want == "" && err != nil, tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("ParseInfo = %v, want %q", err, tt.want)
			case (info != nil) != tt.keys:
				t.Errorf("ParseInfo = %v, want the keys: %v", info, tt.keys)
			case info != nil && !bytes.Equal(info.CAPublic, roots.CAPublic()):
				t.Errorf("ca_pubkey = %x, want %x", info.CAPublic, roots.CAPublic())
			}
		})
	}
}

func TestRecordWithUnreadableEvidenceMustStillFitTheRoots(t *testing.T) {
	dir := peerDirectory(t, "newer-peer")
	text := string(readFile(t, dir, "bootstrap-info.json"))
	broken := strings.Replace(text, `"attestation":"0000`, `"attestation":"8000`, 1)
	writeFile(t, []byte(broken), 0o644, dir, "bootstrap-info.json")
	if s := open(t, dir, nil); !s.Complete() || s.Info() != nil {
		t.Errorf("with Evidence of another form: complete = %v, Info = %v, want true, nil", s.Complete(), s.Info())
	}
	other := hex.EncodeToString(newRoots(t).K256Public())
	at := strings.Index(broken, `"k256_pubkey":"`) + len(`"k256_pubkey":"`)
	writeFile(t, []byte(broken[:at]+other+broken[at+len(other):]), 0o644, dir, "bootstrap-info.json")
	if _, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: clock}); err == nil || !strings.Contains(err.Error(), "is about other keys") {
		t.Errorf("and another public key: Open = %v, want a refusal", err)
	}
}

func FuzzParseInfo(f *testing.F) {
	for _, name := range []string{"older-peer", "newer-peer"} {
		f.Add(readFile(f, "testdata", name, "bootstrap-info.json"))
	}
	roots := vectorRoots(f)
	ours, err := keystore.MarshalInfo(&keystore.Info{CAPublic: roots.CAPublic(), K256Public: roots.K256Public(), Quote: []byte{1}, EventLog: []byte("[]")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ours)
	f.Fuzz(func(t *testing.T, text []byte) {
		info, err := keystore.ParseInfo(text)
		if err != nil {
			return
		}
		out, err := keystore.MarshalInfo(info)
		if err != nil {
			t.Fatal(err)
		}
		again, err := keystore.ParseInfo(out)
		if err != nil {
			t.Fatalf("ParseInfo(%s) = %v", out, err)
		}
		if !bytes.Equal(again.Quote, info.Quote) || !bytes.Equal(again.EventLog, info.EventLog) || !bytes.Equal(again.CAPublic, info.CAPublic) {
			t.Errorf("ParseInfo(marshal(info)) = %+v, want %+v", again, info)
		}
	})
}

func FuzzMarker(f *testing.F) {
	good := keystore.MarshalMarker(map[string][]byte{"root-ca.key": {1}, "rpc.crt": {2}})
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(bytes.Replace(good, []byte("rpc.crt"), []byte("../.crt"), 1))
	f.Add([]byte("teekms stage 1\n"))
	private := map[string][]byte{"root-ca.key": {1}, "root-k256.key": {2}, "rpc.key": {3}, "tmp-ca.key": {4}}
	repaired := maps.Clone(private)
	repaired["rpc.crt"], repaired["root-ca.crt"] = []byte{5}, []byte{6}
	for _, text := range [][]byte{
		keystore.MarshalResealing(private, private),
		keystore.MarshalResealing(map[string][]byte{"root-ca.key": {1}, "root-k256.key": {2}}, repaired),
	} {
		if _, ok := keystore.MarkedFiles(text); !ok {
			f.Fatalf("the marker of a resealing is none: %s", text)
		}
		f.Add(text)
		f.Add(bytes.Replace(text, []byte("rpc.key"), []byte("../.key"), 1))
	}
	for _, body := range strangeMarkers() {
		f.Add(keystore.EndMarker(body))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		// The fuzzer does not find digests: its lines are tried with the right one.
		text = keystore.EndMarker(string(text[:max(0, bytes.LastIndex(text, []byte("end ")))]))
		names, ok := keystore.MarkedFiles(text)
		if !ok {
			return
		}
		if again := keystore.RemarshalMarker(text); !bytes.Equal(again, text) {
			t.Errorf("%q is written again as %q", text, again)
		}
		for _, name := range names {
			if _, ours := theEight()[name]; !ours {
				t.Errorf("a marker names %q", name)
			}
		}
	})
}

// strangeMarkers are the lines of markers that nobody writes.
func strangeMarkers() []string {
	digest, old := strings.Repeat("0a", 32), strings.Repeat("0b", 32)
	all := func(line string) string {
		var b strings.Builder
		for _, name := range privateNames() {
			fmt.Fprintln(&b, strings.ReplaceAll(line, "NAME", name))
		}
		return b.String()
	}
	whole := all(old + " " + digest + " NAME")
	return []string{
		"",
		"teekms stage 1\n",
		"teekms stage 2\n" + digest + " root-ca.key\n",
		"teekms stage 1\n" + digest + " root-ca.key\n" + digest + " root-ca.key\n",
		"teekms stage 1\n" + strings.ToUpper(digest) + " root-ca.key\n",
		"teekms stage 1\n" + digest + " root-ca.key.old\n",
		"teekms stage 1\n" + digest + " ../root-ca.key\n",
		"teekms stage 1\n" + digest + " /etc/passwd\n",
		"teekms stage 1\n" + digest + " commit\n",
		"teekms stage 1\n" + digest + "  root-ca.key\n",
		"teekms stage 1\n" + digest + " root-ca.key\n\n",
		"teekms stage 1\n" + old + " " + digest + " root-ca.key\n",
		"teekms reseal 1\n" + digest + " root-ca.key\n",
		"teekms reseal 1\n" + old + " " + digest + " root-ca.key\n",
		"teekms reseal 1\n" + strings.ReplaceAll(whole, "rpc.key", "rpc.crt"),
		"teekms reseal 1\n" + whole + old + " " + digest + " rpc.crt\n",
		"teekms reseal 1\n" + whole + old + " " + digest + " root-ca.key\n",
		"teekms reseal 1\n" + whole + "- " + digest + " ../rpc.crt\n",
		"teekms reseal 1\n" + all(strings.ToUpper(old)+" "+digest+" NAME"),
		"teekms reseal 1\n" + all("-- "+digest+" NAME"),
		"teekms reseal 1\n" + all(old[2:]+" "+digest+" NAME"),
		"teekms reseal 2\n" + whole,
	}
}

func TestStrangeMarkersAreNone(t *testing.T) {
	for _, body := range strangeMarkers() {
		if names, ok := keystore.MarkedFiles(keystore.EndMarker(body)); ok {
			t.Errorf("%q is taken for a marker of %v", body, names)
		}
	}
	// The test of the test: with these lines it is one.
	digest := strings.Repeat("0a", 32)
	if _, ok := keystore.MarkedFiles(keystore.EndMarker("teekms stage 1\n" + digest + " root-ca.key\n")); !ok {
		t.Error("a good marker is none")
	}
}

// TestAdoptedDirectoryIsSealed adopts the directory of a peer, keys open to all,
// and seals it.
func TestAdoptedDirectoryIsSealed(t *testing.T) {
	here := sealTo(t, "here")
	for _, name := range []string{"older-peer", "newer-peer"} {
		t.Run(name, func(t *testing.T) {
			dir := peerDirectory(t, name)
			before := snapshot(t, dir)
			s := open(t, dir, nil)
			if err := s.Reseal(t.Context(), here); err != nil {
				t.Fatal(err)
			}
			if got, want := changed(t, dir, before), []string{"root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"}; !slices.Equal(got, want) || len(list(t, dir)) != 9 {
				t.Errorf("changed %v of %v, want the private files, nothing new", got, list(t, dir))
			}
			for _, file := range privateNames() {
				if got := perm(t, dir, file); got != 0o600 {
					t.Errorf("mode of %s = %o, want 600", file, got)
				}
				if got := plainOf(t, dir, nil, here)[file]; !bytes.Equal(got, before[file]) {
					t.Errorf("%s has other contents when opened", file)
				}
			}
			s, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: clock, Sealer: here})
			if err != nil {
				t.Fatal(err)
			}
			if s.Domain() != "kms.example.com" || !s.Roots().Equal(vectorRoots(t)) {
				t.Errorf("domain = %q, want the peer's roots and domain", s.Domain())
			}
			checkAdoptedKeys(t, s)
			checkAdoptedRecord(t, s)
			checkAdoptedRenewal(t, s, dir)
		})
	}
}

func TestMarkerIsWholeOrNone(t *testing.T) {
	good := keystore.MarshalMarker(map[string][]byte{"root-ca.key": {1}, "rpc.crt": {2}})
	names, ok := keystore.MarkedFiles(good)
	if diff := cmp.Diff([]string{"rpc.crt", "root-ca.key"}, names); !ok || diff != "" {
		t.Fatalf("MarkedFiles = %v (-want +got):\n%s", ok, diff)
	}
	for n := range len(good) {
		if _, ok := keystore.MarkedFiles(good[:n]); ok {
			t.Errorf("a marker of %d bytes of %d is taken", n, len(good))
		}
		flipped := bytes.Clone(good)
		flipped[n] ^= 1
		if _, ok := keystore.MarkedFiles(flipped); ok {
			t.Errorf("a marker with byte %d changed is taken", n)
		}
	}
	if _, ok := keystore.MarkedFiles(append(bytes.Clone(good), '\n')); ok {
		t.Error("a marker with something behind it is taken")
	}
}

package client_test

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"log" //nolint:depguard // net/http wants one
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"teekms/client"
	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/keys"
	"teekms/internal/prpc"
	"teekms/internal/ratls"
	"teekms/internal/ratls/csr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const domain = "kms.example.com"

// kmsOptions change what a KMS of these tests is and answers.
type kmsOptions struct {
	// bare serves a certificate without Evidence.
	bare bool
	// application serves a certificate of an application under the same root.
	application bool
	// borrowed serves a certificate with the Evidence of another key.
	borrowed bool
	// swap serves each connection with another key.
	swap bool
	// skew is by how much the clock that signatures are made by is ahead.
	skew time.Duration
	// chain insists on client certificates of the temporary CA.
	chain bool
	// deny is the text of an error that answers every call for keys.
	deny string
	// edit changes an answer before it goes.
	edit func(proto.Message)
	// endorse changes the collateral of the trust domain.
	endorse *simtd.Endorsements
}

// kms is a KMS with what the client needs of one: real keys, real Evidence, a
// real appraisal of who calls.
type kms struct {
	o         kmsOptions
	td        *simtd.TD
	dir       string
	roots     *keys.Roots
	ca, temp  *x509.Certificate
	caPEM     []byte
	tempKey   *ecdsa.PrivateKey
	server    *ratls.Server
	http      *httptest.Server
	appraiser *ratls.Appraiser
}

func newKMS(tb testing.TB, o kmsOptions) *kms {
	tb.Helper()
	k := &kms{o: o, dir: tb.TempDir()}
	var err error
	must := func(step error) {
		tb.Helper()
		if step != nil {
			tb.Fatal(step)
		}
	}
	k.td, err = simtd.Open(simtd.Config{Dir: k.dir})
	must(err)
	if o.endorse != nil {
		must(k.td.SetEndorsements(*o.endorse))
	}
	k.roots, err = keys.NewRoots()
	must(err)
	ca, err := keys.NewRootCA(k.roots, time.Now())
	must(err)
	k.caPEM = keys.CertificatePEM(ca)
	k.ca, err = x509.ParseCertificate(ca)
	must(err)
	k.tempKey, err = keys.NewKey()
	must(err)
	temp, err := keys.NewTempCA(k.tempKey, time.Now())
	must(err)
	k.temp, err = x509.ParseCertificate(temp)
	must(err)
	verifier, err := tdx.NewVerifier(tdx.Config{TrustAnchor: k.td.Root(), Collateral: k.td})
	must(err)
	k.appraiser, err = ratls.NewAppraiser(ratls.AppraiserConfig{Verifier: verifier})
	must(err)
	cert := k.certificate(tb)
	k.server, err = ratls.NewServer(ratls.ServerConfig{
		Appraiser: k.appraiser, Certificates: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
	})
	must(err)
	k.http = httptest.NewUnstartedServer(http.HandlerFunc(k.serve))
	k.http.EnableHTTP2 = true
	k.http.TLS = k.server.TLSConfig()
	k.http.TLS.Certificates = []tls.Certificate{cert} // httptest would add its own
	if o.swap {
		k.http.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			config := k.server.TLSConfig()
			config.NextProtos = []string{"h2"}
			config.Certificates = []tls.Certificate{k.certificate(tb)}
			return config, nil
		}
	}
	k.http.Config.ErrorLog = log.New(io.Discard, "", 0)
	k.http.Config.ConnContext = k.server.ConnContext
	k.http.StartTLS()
	tb.Cleanup(k.http.Close)
	return k
}

func (k *kms) certificate(tb testing.TB) tls.Certificate {
	tb.Helper()
	key, err := keys.NewKey()
	if err != nil {
		tb.Fatal(err)
	}
	var extensions []pkix.Extension
	if !k.o.bare {
		spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			tb.Fatal(err)
		}
		if k.o.borrowed {
			spki = k.ca.RawSubjectPublicKeyInfo
		}
		ev, err := k.td.Attest(tb.Context(), attest.RATLSReportData(spki))
		if err != nil {
			tb.Fatal(err)
		}
		if extensions, err = ratls.Extensions(ev, ratls.Gen8); err != nil {
			tb.Fatal(err)
		}
	}
	if k.o.application {
		der, ca, err := keys.IssueApp(keys.AppRequest{Roots: k.roots, CA: k.ca, AppID: make([]byte, 20), Public: &key.PublicKey, CommonName: domain, Names: []string{domain}, Extensions: extensions, Now: time.Now()})
		if err != nil {
			tb.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der, ca}, PrivateKey: key}
	}
	der, err := keys.IssueRPC(keys.RPCRequest{Roots: k.roots, CA: k.ca, Public: &key.PublicKey, Domain: domain, Extensions: extensions, Now: time.Now()})
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (k *kms) serve(w http.ResponseWriter, r *http.Request) {
	codec, err := prpc.NewCodec(kmsv1.File_kms_v1_kms_proto.Services().ByName("KMS"), "")
	if err != nil {
		panic(err)
	}
	answer, err := k.answer(r, codec)
	var body []byte
	if err == nil {
		if k.o.edit != nil {
			k.o.edit(answer)
		}
		body, err = codec.Marshal(answer)
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		body, _ = json.MarshalIndent(map[string]string{"error": err.Error()}, "", "  ")
	}
	w.Write(body)
}

func (k *kms) answer(r *http.Request, codec *prpc.Codec) (proto.Message, error) {
	ctx, err := k.server.Admit(r.Context())
	if err != nil {
		return nil, err
	}
	peer := ratls.PeerFrom(ctx)
	if k.o.chain && len(r.TLS.PeerCertificates) > 0 {
		if err := r.TLS.PeerCertificates[0].CheckSignatureFrom(k.temp); err != nil {
			return nil, errors.New("client certificate is not of the temporary CA")
		}
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	switch method := strings.TrimPrefix(r.URL.Path, "/prpc/KMS."); method {
	case "GetMeta":
		return &kmsv1.GetMetaResponse{CaCert: string(k.caPEM), K256Pubkey: k.roots.K256Public(), IsDev: true}, nil
	case "GetTempCaCert":
		key, err := keys.KeyPEM(k.tempKey)
		return &kmsv1.GetTempCaCertResponse{CaCert: string(k.caPEM), TempCaCert: string(keys.CertificatePEM(k.temp.Raw)), TempCaKey: string(key.Bytes())}, err
	case "GetAppEnvEncryptPubKey":
		var in kmsv1.GetAppEnvEncryptPubKeyRequest
		if err := codec.Unmarshal(body, &in); err != nil {
			return nil, err
		}
		return k.envKey(in.GetAppId())
	case "GetAppKey":
		if peer == nil {
			return nil, errors.New("No attestation provided")
		}
		var in kmsv1.GetAppKeyRequest
		if err := codec.Unmarshal(body, &in); err != nil {
			return nil, err
		}
		return k.appKey(peer, in.GetVmConfig())
	case "SignCert":
		var in kmsv1.SignCertRequest
		if err := codec.Unmarshal(body, &in); err != nil {
			return nil, err
		}
		return k.sign(r, &in)
	default:
		return nil, errors.New("Service not found: " + method)
	}
}

func (k *kms) envKey(appID []byte) (*kmsv1.GetAppEnvEncryptPubKeyResponse, error) {
	env, err := k.roots.Env(appID)
	if err != nil {
		return nil, err
	}
	out := &kmsv1.GetAppEnvEncryptPubKeyResponse{PublicKey: env.Public, Timestamp: uint64(time.Now().Add(k.o.skew).Unix())}
	if out.Signature, err = k.roots.SignEnvPublic(appID, env.Public); err != nil {
		return nil, err
	}
	out.SignatureV1, err = k.roots.SignEnvPublicAt(appID, env.Public, out.GetTimestamp())
	return out, err
}

func (k *kms) appKey(peer *ratls.Attested, vmConfig string) (*kmsv1.GetAppKeyResponse, error) {
	if k.o.deny != "" {
		return nil, errors.New(k.o.deny)
	}
	id, err := peer.Log.Identity()
	if err != nil {
		return nil, err
	}
	env, err := k.roots.Env(id.AppID)
	if err != nil {
		return nil, err
	}
	disk, err := k.roots.AppDisk(id.AppID, id.InstanceID)
	if err != nil {
		return nil, err
	}
	app, err := k.roots.AppK256(id.AppID)
	if err != nil {
		return nil, err
	}
	var config struct {
		OSImageHash string `json:"os_image_hash"`
	}
	if err := json.Unmarshal([]byte(vmConfig), &config); err != nil {
		return nil, errors.New("Failed to decode VM config")
	}
	return &kmsv1.GetAppKeyResponse{
		CaCert: string(k.caPEM), DiskCryptKey: disk.Bytes(), EnvCryptKey: env.Private.Bytes(),
		K256Key: app.Private.Bytes(), K256Signature: app.Signature, TproxyAppId: "any", GatewayAppId: "any", OsImageHash: []byte(config.OSImageHash),
	}, nil
}

func (k *kms) sign(r *http.Request, in *kmsv1.SignCertRequest) (*kmsv1.SignCertResponse, error) {
	if k.o.deny != "" {
		return nil, errors.New(k.o.deny)
	}
	req, err := csr.Parse(in.GetApiVersion(), in.GetCsr())
	if err != nil {
		return nil, err
	}
	public, err := req.VerifySignature(in.GetCsr(), in.GetSignature())
	if err != nil {
		return nil, err
	}
	peer, err := k.appraiser.Appraise(r.Context(), req.Evidence, req.PublicKey)
	if err != nil {
		return nil, err
	}
	id, err := peer.Log.Identity()
	if err != nil {
		return nil, err
	}
	app := keys.AppRequest{
		Roots: k.roots, CA: k.ca, AppID: id.AppID, Public: public, Organization: req.Org, CommonName: req.Subject, Names: req.SANs,
		ServerAuth: req.ServerAuth, ClientAuth: req.ClientAuth, Now: time.Now(),
	}
	if req.NotAfter != nil {
		app.NotAfter = *req.NotAfter
	}
	if req.WithEvidence {
		if app.Extensions, err = ratls.Extensions(req.Evidence, ratls.Gen8); err != nil {
			return nil, err
		}
	}
	leaf, ca, err := keys.IssueApp(app)
	return &kmsv1.SignCertResponse{CertificateChain: []string{string(keys.CertificatePEM(leaf)), string(keys.CertificatePEM(ca)), string(k.caPEM)}}, err
}

// trust believes the trust domain of the KMS.
func (k *kms) trust() client.Trust {
	return client.Trust{RootFile: k.td.RootPath(), CollateralDir: k.dir}
}

// app is the attester of an application on the same machine.
func (k *kms) app(tb testing.TB, cfg client.SimulatorConfig) *client.Attester {
	tb.Helper()
	cfg.Dir = k.dir
	a, err := client.Simulator(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

// config is that of an application that knows the root certificate.
func (k *kms) config(tb testing.TB) client.Config {
	tb.Helper()
	return client.Config{
		URL: k.http.URL, CACert: k.caPEM, Trust: k.trust(),
		Attester: k.app(tb, client.SimulatorConfig{AppID: appID(), ComposeHash: composeHash(), InstanceID: instanceID(), Booting: true}),
	}
}

func appID() []byte       { return []byte(strings.Repeat("a", 20)) }
func composeHash() []byte { return []byte(strings.Repeat("c", 32)) }
func instanceID() []byte  { return []byte(strings.Repeat("i", 20)) }

func dial(tb testing.TB, cfg client.Config) *client.Client {
	tb.Helper()
	c, err := client.Dial(tb.Context(), cfg)
	if err != nil {
		tb.Fatalf("Dial() = %v", err)
	}
	tb.Cleanup(c.Close)
	return c
}

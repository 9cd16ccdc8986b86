package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"teekms/client"
)

// An application in a software trust domain gets its keys from the KMS whose
// root certificate it knows.
func Example() {
	kms := exampleKMS()
	defer kms.close()

	attester, err := client.Simulator(client.SimulatorConfig{Dir: kms.simulator, AppID: appID(), ComposeHash: composeHash()})
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := client.Dial(context.Background(), client.Config{
		URL:      kms.url,
		CACert:   kms.caCert,
		Trust:    client.Trust{RootFile: filepath.Join(kms.simulator, "root-ca.pem"), CollateralDir: kms.simulator},
		Attester: attester,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()

	keys, err := c.AppKey(context.Background(), "")
	if denied, ok := errors.AsType[*client.DeniedError](err); ok {
		fmt.Println("may not have its keys:", denied.Reason)
		return
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(keys.DiskKey, keys.DiskKey.Len())
	// Output: [redacted] 32
}

// On a TDX machine, the guest agent makes the Evidence and Intel vouches for
// that of the KMS, which is identified by what it measures.
func ExampleDial() {
	mrtd := make([]byte, 48) // as published with the image of the KMS
	attester, err := client.GuestAgent("")
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = client.Dial(context.Background(), client.Config{
		URL:      "https://kms.example.com:9100",
		Policy:   client.Policy{MRTD: [][]byte{mrtd}},
		Attester: attester,
	})
	fmt.Println(errors.Is(err, client.ErrNoAttester))
	// Output: true
}

// A certificate of the application's own CA, for a key that never leaves.
func ExampleClient_SignCert() {
	kms := exampleKMS()
	defer kms.close()
	c, err := kms.dial()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		fmt.Println(err)
		return
	}
	cert, err := c.SignCert(context.Background(), client.CertRequest{
		Key: key, Subject: "app", Names: []string{"app.example.com"}, ServerAuth: true,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, c := range cert.Chain {
		fmt.Println(c.Subject.CommonName)
	}
	// Output:
	// app
	// Dstack App CA
	// Dstack KMS CA
}

// The environment of an application is encrypted to this key by whoever
// deploys it, who needs no trust domain.
func ExampleClient_EnvPublicKey() {
	kms := exampleKMS()
	defer kms.close()
	c, err := kms.dial()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()

	key, err := c.EnvPublicKey(context.Background(), appID())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(len(key.PublicKey), len(key.K256Root))
	// Output: 32 33
}

// exampleTB lets the examples use the KMS of the tests.
type exampleTB struct {
	testing.TB
	dirs     []string
	cleanups []func()
}

func (*exampleTB) Helper()                  {}
func (*exampleTB) Context() context.Context { return context.Background() }
func (*exampleTB) Fatal(args ...any)        { panic(fmt.Sprint(args...)) }
func (e *exampleTB) Cleanup(f func())       { e.cleanups = append(e.cleanups, f) }

func (e *exampleTB) TempDir() string {
	dir, err := os.MkdirTemp("", "client-example-")
	if err != nil {
		panic(err)
	}
	e.dirs = append(e.dirs, dir)
	return dir
}

type exampleServer struct {
	tb             *exampleTB
	url, simulator string
	caCert         []byte
	config         client.Config
}

func exampleKMS() *exampleServer {
	tb := &exampleTB{}
	k := newKMS(tb, kmsOptions{})
	return &exampleServer{tb: tb, url: k.http.URL, simulator: k.dir, caCert: k.caPEM, config: k.config(tb)}
}

func (s *exampleServer) dial() (*client.Client, error) {
	return client.Dial(context.Background(), s.config)
}

func (s *exampleServer) close() {
	for _, f := range s.tb.cleanups {
		f()
	}
	for _, dir := range s.tb.dirs {
		_ = os.RemoveAll(dir)
	}
}

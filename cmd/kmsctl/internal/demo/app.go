package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"

	"teekms/client"
	onboardv1 "teekms/gen/onboard/v1"
	"teekms/gen/onboard/v1/onboardv1connect"
	"teekms/internal/keys"
)

// The application of the demonstration, and what somebody made of it.
const (
	appCompose     = "services: {app: {image: demo}}"
	changedCompose = "services: {app: {image: demo, command: leak}}"
)

// composeHash is what a guest measures of its compose file.
func composeHash(compose string) []byte {
	digest := sha256.Sum256([]byte(compose))
	return digest[:]
}

// appID is by default the beginning of the first compose hash.
func appID() []byte { return composeHash(appCompose)[:20] }

func (d *demo) startAuthority(ctx context.Context) (_ string, err error) {
	allowed := hex.EncodeToString(composeHash(appCompose))
	if d.authority, err = startAuthority(ctx, allowed); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s allows the compose hash %s… alone", d.authority.url, allowed[:16]), nil
}

// dial connects to a KMS as an application with this compose file.
func (d *demo) dial(ctx context.Context, url, compose string) (*client.Client, error) {
	return d.dialAs(ctx, url, "", compose)
}

// dialAs is dial for a KMS that shows its own certificate only to who asks for
// its name.
func (d *demo) dialAs(ctx context.Context, url, name, compose string) (*client.Client, error) {
	root, err := os.ReadFile(d.path(certsDir, caFile))
	if err != nil {
		return nil, fmt.Errorf("reading the root certificate: %w", err)
	}
	attester, err := client.Simulator(client.SimulatorConfig{ //nolint:contextcheck // it opens files, which takes no time worth cutting short
		Dir: d.path(tdDir), AppID: appID(), ComposeHash: composeHash(compose), Booting: true,
	})
	if err != nil {
		return nil, err
	}
	return client.Dial(ctx, client.Config{
		URL: url, ServerName: name, CACert: root, Attester: attester, Now: d.cfg.Now,
		Trust: client.Trust{RootFile: d.path(tdDir, rootFile), CollateralDir: d.path(tdDir)},
		// The root key that Bootstrap answered with must have signed.
		K256Root: d.record.GetK256Pubkey(),
		Policy:   client.Policy{RequireEvidence: true},
	})
}

// getKeys gets the keys of the application from a KMS.
func (d *demo) getKeys(ctx context.Context, url string) (*client.AppKeys, error) {
	c, err := d.dial(ctx, url, appCompose)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.AppKey(ctx, "")
}

func (d *demo) appKeys(ctx context.Context) (_ string, err error) {
	if d.keys, err = d.getKeys(ctx, d.url()); err != nil {
		return "", err
	}
	return fmt.Sprintf("app id %x, a disk key of %d bytes, a key signed by the root key", appID(), d.keys.DiskKey.Len()), nil
}

func (d *demo) appCert(ctx context.Context) (string, error) {
	c, err := d.dial(ctx, d.url(), appCompose)
	if err != nil {
		return "", err
	}
	defer c.Close()
	key, err := keys.NewKey()
	if err != nil {
		return "", err
	}
	cert, err := c.SignCert(ctx, client.CertRequest{
		Key: key, Subject: "app", Names: []string{"app.localhost"}, ServerAuth: true, WithEvidence: true,
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, by %s, by %s", cert.Chain[0].Subject, cert.Chain[1].Subject, cert.Chain[2].Subject), nil
}

// denied sees that an application that was changed gets nothing.
func (d *demo) denied(ctx context.Context) (string, error) {
	c, err := d.dial(ctx, d.url(), changedCompose)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_, err = c.AppKey(ctx, "")
	denied, ok := errors.AsType[*client.DeniedError](err)
	switch {
	case ok:
		return "denied: " + denied.Reason, nil
	case err == nil:
		return "", errors.New("it got the keys")
	}
	return "", err
}

// onboardPeer has a second KMS fetch the root keys of the first.
func (d *demo) onboardPeer(ctx context.Context) (string, error) {
	p, err := d.startNamed("dstack-onboard", "2", d.path(secondConfig))
	d.secondOnboarder = p
	if err != nil {
		return "", err
	}
	url := "http://" + d.secondOnboardPort.host()
	if err := waitFor(ctx, p, http.DefaultClient, url+"/health"); err != nil {
		return "", err
	}
	onboard := onboardv1connect.NewOnboardClient(http.DefaultClient, url)
	answer, err := onboard.Onboard(ctx, &onboardv1.OnboardRequest{SourceUrl: d.url(), Domain: secondDomain})
	if err != nil {
		return "", err
	}
	if !bytes.Equal(answer.GetK256Pubkey(), d.record.GetK256Pubkey()) {
		return "", errors.New("it has another root key")
	}
	if _, err := onboard.Finish(ctx, &onboardv1.FinishRequest{}); err != nil {
		return "", err
	}
	return fmt.Sprintf("both appraised each other; %s has the same root keys", secondDomain), p.ending(ctx)
}

// sameKeys sees that both KMSs derive the same keys, and ends the second.
func (d *demo) sameKeys(ctx context.Context) (string, error) {
	p, err := d.startNamed("dstack-kms", "2", d.path(secondConfig))
	d.second = p
	if err != nil {
		return "", err
	}
	url := "https://" + d.secondPort.host()
	if err := waitFor(ctx, p, d.pinnedTo(secondDomain), url+"/ready"); err != nil {
		return "", err
	}
	got, err := d.getKeys(ctx, url)
	if err != nil {
		return "", err
	}
	for _, pair := range [][2]client.Secret{{got.DiskKey, d.keys.DiskKey}, {got.EnvKey, d.keys.EnvKey}, {got.K256Key, d.keys.K256Key}} {
		if !bytes.Equal(pair[0].Bytes(), pair[1].Bytes()) {
			return "", errors.New("it derives other keys")
		}
	}
	return secondDomain + " gives the application the very same keys", p.stop()
}

package serve_test

import (
	"context"
	"crypto/tls"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"teekms/internal/serve"
)

const day = 24 * time.Hour

// TestRenewLoop holds when certificates are issued: at once, at two thirds of
// the life of each, and after a failure ever more slowly.
func TestRenewLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var at []time.Duration
		fail := map[int]bool{2: true, 3: true}
		core, logs := observer.New(zapcore.ErrorLevel)
		rc := serve.RenewConfig{Log: zap.New(core), Issue: func(context.Context) (tls.Certificate, error) {
			at = append(at, time.Since(began))
			if fail[len(at)-1] {
				return tls.Certificate{}, errors.New("no entropy")
			}
			// notBefore long ago, as some clients' clocks need it.
			return issue(t, "kms", time.Unix(0, 0), time.Now().Add(90*day)), nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		var holder serve.Certificate
		if err := holder.Renew(ctx, rc); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			holder.RenewLoop(ctx, rc)
		}()
		time.Sleep(200 * day)
		cancel()
		<-done
		want := []time.Duration{
			0, 60 * day, 120 * day, 120*day + time.Minute, 120*day + 3*time.Minute, 180*day + 3*time.Minute,
		}
		// Certificates have seconds: each renewal may come up to one early.
		for i := range at {
			at[i] = at[i].Round(time.Minute)
		}
		if diff := cmp.Diff(want, at); diff != "" {
			t.Errorf("issued at (-want +got):\n%s", diff)
		}
		if got := logs.Len(); got != 2 {
			t.Errorf("%d failures logged, want 2", got)
		}
		if cert, err := holder.Get(nil); err != nil || cert.Leaf.NotAfter.Before(time.Now()) {
			t.Errorf("certificate at the end = %v, %v, want a current one", cert, err)
		}
	})
}

func TestRenewLoopWithoutACertificateIssuesOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var holder serve.Certificate
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go holder.RenewLoop(ctx, serve.RenewConfig{Log: zap.NewNop(), Issue: func(context.Context) (tls.Certificate, error) {
			return issue(t, "kms", time.Now(), time.Now().Add(day)), nil
		}})
		synctest.Wait()
		time.Sleep(time.Second)
		if _, err := holder.Get(nil); err != nil {
			t.Errorf("Get = %v, want a certificate", err)
		}
	})
}

// TestCertificateThatIsNeverFreshDoesNotSpin holds that a certificate without a
// life left is not issued over and over.
func TestCertificateThatIsNeverFreshDoesNotSpin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issued := 0
		ctx, cancel := context.WithCancel(t.Context())
		var holder serve.Certificate
		done := make(chan struct{})
		go func() {
			defer close(done)
			holder.RenewLoop(ctx, serve.RenewConfig{Log: zap.NewNop(), Issue: func(context.Context) (tls.Certificate, error) {
				issued++
				return issue(t, "kms", time.Unix(0, 0), time.Unix(1, 0)), nil
			}})
		}()
		time.Sleep(10*time.Minute + time.Second)
		cancel()
		<-done
		if issued != 11 {
			t.Errorf("issued %d times in ten minutes, want 11", issued)
		}
	})
}

func TestRenewKeepsTheOldCertificateOnFailure(t *testing.T) {
	var holder serve.Certificate
	holder.Set(issue(t, "old", time.Now(), time.Now().Add(day)))
	for _, cert := range []tls.Certificate{{}, {Certificate: [][]byte{{1}}}} {
		err := holder.Renew(t.Context(), serve.RenewConfig{Log: zap.NewNop(), Issue: func(context.Context) (tls.Certificate, error) {
			return cert, nil
		}})
		if err == nil {
			t.Error("Renew with a certificate that cannot be read = nil, want an error")
		}
	}
	if cert, err := holder.Get(nil); err != nil || len(cert.Certificate[0]) == 1 {
		t.Errorf("Get = %v, %v, want the old certificate", cert, err)
	}
}

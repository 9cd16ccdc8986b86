package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
)

// once is a source that asks another one a single time for each platform, so
// that two verifiers see the same collateral.
type once struct {
	source tdx.CollateralSource
	got    map[platform]*tdx.Collateral
	// first is what was got first: what our own verifier asked for.
	first *tdx.Collateral
}

type platform struct {
	fmspc tdx.FMSPC
	ca    tdx.CA
}

func (o *once) Collateral(ctx context.Context, fmspc tdx.FMSPC, ca tdx.CA) (*tdx.Collateral, error) {
	p := platform{fmspc, ca}
	if c, ok := o.got[p]; ok {
		return c, nil
	}
	c, err := o.source.Collateral(ctx, fmspc, ca)
	if err != nil {
		return nil, err
	}
	o.got[p] = c
	if o.first == nil {
		o.first = c
	}
	return c, nil
}

// judgeCollateral makes collateral that is too young for the time asked about
// what it is: not bad, but none for that time. Whether it is good otherwise is
// seen by verifying as of now.
func (c *checker) judgeCollateral(ev *attest.Evidence) {
	l := c.r.mutableLink(attest.LinkCollateral)
	if l == nil || l.Err == nil || errors.Is(l.Err, attest.ErrNoCollateral) || !c.cfg.At.Before(c.cfg.Now) {
		return
	}
	v, err := tdx.NewVerifier(tdx.Config{
		TrustAnchor: c.cfg.TrustAnchor, Collateral: c.cfg.Collateral,
		Now: func() time.Time { return c.cfg.Now },
	})
	if err != nil {
		return // the same anchor was good enough before
	}
	for _, s := range v.Trace(c.ctx, ev).Steps {
		if s.Link == attest.LinkCollateral && s.Checked && s.Err == nil {
			l.Err = fmt.Errorf("%w for that time: %w", attest.ErrNoCollateral, l.Err)
		}
	}
}

// save keeps the collateral for whoever verifies the same Evidence later.
func (c *checker) save() error {
	if c.cfg.SaveCollateral == "" || !c.r.holds(attest.LinkCollateral) {
		return nil
	}
	if err := os.MkdirAll(c.cfg.SaveCollateral, 0o755); err != nil {
		return fmt.Errorf("saving collateral: %w", err)
	}
	if err := c.source.first.WriteDir(c.cfg.SaveCollateral); err != nil {
		return err
	}
	c.r.Notes = append(c.r.Notes, fmt.Sprintf("the collateral is kept in %s; verify later with --collateral %[1]s --at %s",
		c.cfg.SaveCollateral, c.r.VerifiedAt.Format(time.RFC3339)))
	return nil
}

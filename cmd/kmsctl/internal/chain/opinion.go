package chain

import (
	"context"
	"errors"
	"fmt"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
	"teekms/internal/attest/tdx/secondopinion"
)

// opinion has another implementation verify the same quote. Where it refuses
// what holds here, one of the two is wrong, and the Evidence does not pass.
func (c *checker) opinion() {
	if !c.cfg.SecondOpinion {
		return
	}
	if c.s.Record == nil || len(c.s.Record.Quote) == 0 {
		c.add(skipped(LinkOpinion, "there is no quote"))
		return
	}
	if l, _ := c.r.link(attest.LinkCollateral); errors.Is(l.Err, attest.ErrNoCollateral) {
		c.add(skipped(LinkOpinion, "it rests on %s", attest.LinkCollateral))
		return
	}
	cfg := secondopinion.Config{
		TrustAnchor: c.cfg.TrustAnchor, Collateral: c.cfg.Collateral,
		Now: func() time.Time { return c.cfg.At },
	}
	found := "go-tdx-guest accepts chain, signatures, collateral and revocation"
	// It takes no TCB status but UpToDate for good, so of another one that was
	// allowed here it can be asked only what does not need collateral.
	if c.verified != nil && c.verified.TCB != attest.UpToDate && c.r.holds(attest.LinkTCB) {
		cfg.Collateral = nil
		found = fmt.Sprintf("go-tdx-guest accepts chain and signatures; it was not asked about collateral, since it refuses %s", c.verified.TCB)
	}
	if err := secondopinion.Verify(c.ctx, cfg, &attest.Evidence{Quote: c.s.Record.Quote}); err != nil {
		// Its errors are told, but must not be taken for ours.
		c.add(broken(LinkOpinion, errors.New("go-tdx-guest refuses: "+err.Error())))
		return
	}
	c.add(held(LinkOpinion, "%s", found))
}

// once is a source that asks another one a single time for each platform, so
// that two verifiers see the same collateral.
type once struct {
	source tdx.CollateralSource
	got    map[tdx.FMSPC]*tdx.Collateral
}

func (o *once) Collateral(ctx context.Context, fmspc tdx.FMSPC, ca tdx.CA) (*tdx.Collateral, error) {
	if c, ok := o.got[fmspc]; ok {
		return c, nil
	}
	c, err := o.source.Collateral(ctx, fmspc, ca)
	if err == nil {
		o.got[fmspc] = c
	}
	return c, err
}

package chain

import (
	"errors"
	"fmt"
	"time"

	"teekms/internal/attest"
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
	cfg := secondopinion.Config{
		TrustAnchor: c.cfg.TrustAnchor, Collateral: c.cfg.Collateral,
		Now: func() time.Time { return c.cfg.At },
	}
	found := "go-tdx-guest accepts chain, signatures, collateral and revocation"
	if why := c.withoutCollateral(); why != "" {
		cfg.Collateral = nil
		found = "go-tdx-guest accepts chain and signatures; it was not asked about collateral, since " + why
	}
	if err := secondopinion.Verify(c.ctx, cfg, &attest.Evidence{Quote: c.s.Record.Quote}); err != nil {
		// Its errors are told, but must not be taken for ours.
		c.add(broken(LinkOpinion, errors.New("go-tdx-guest refuses: "+err.Error())))
		return
	}
	c.add(held(LinkOpinion, "%s", found))
}

// withoutCollateral says why the other implementation can be asked only what
// does not need collateral; empty when it can be asked everything.
func (c *checker) withoutCollateral() string {
	l, _ := c.r.link(attest.LinkCollateral)
	switch {
	case errors.Is(l.Err, attest.ErrNoCollateral):
		return "there is none"
	case c.verified != nil && c.verified.TCB != attest.UpToDate && c.r.holds(attest.LinkTCB):
		// It takes no other status for good, whatever was allowed here.
		return fmt.Sprintf("it refuses %s", c.verified.TCB)
	default:
		return ""
	}
}

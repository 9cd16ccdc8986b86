package chain

import (
	"fmt"
	"time"

	"teekms/cmd/kmsctl/internal/status"
	"teekms/cmd/kmsctl/internal/terminal"
)

// nameWidth is that of the longest name of a link.
const nameWidth = len("PCK certificate chain")

// WriteLinks writes one line for each link.
func (r *Report) WriteLinks(p *terminal.Printer) {
	for _, l := range r.Links {
		switch {
		case !l.Checked:
			p.Marked(terminal.Open, l.Name, nameWidth, l.Detail)
		case l.Err != nil:
			p.Marked(terminal.Bad, l.Name, nameWidth, l.Err.Error())
		default:
			p.Marked(terminal.Good, l.Name, nameWidth, l.Detail)
		}
	}
}

// WriteText writes the whole report for people.
func (r *Report) WriteText(p *terminal.Printer) {
	p.Line("Verifying %s as of %s", r.Location, r.VerifiedAt.Format(time.RFC3339))
	if r.PrivateKeys == nil {
		p.Line("Trust root  %s", r.rootText())
		p.Line("Collateral  %s", r.Collateral)
	} else {
		p.Line("Trust root    %s", r.rootText())
		p.Line("Collateral    %s", r.Collateral)
		p.Line("Private keys  %s", r.PrivateKeys)
	}
	p.Line("")
	r.WriteLinks(p)
	p.Line("")
	if c := r.Claims; c != nil {
		r.writeClaims(p)
		p.Line("")
	}
	for _, n := range r.Notes {
		p.Line("Note: %s.", n)
	}
	mark := terminal.Bad
	if r.OK {
		mark = terminal.Good
	}
	p.Bold(mark, "%s", r.conclusion())
}

func (r *Report) rootText() string {
	whose := "NOT Intel's"
	if r.TrustRootIsIntel {
		whose = "Intel's"
	}
	return fmt.Sprintf("%s, SHA-256 %s", whose, r.TrustRootSHA256)
}

func (r *Report) conclusion() string {
	switch {
	case r.ExitCode == status.NoCollateral:
		return "Neither verified nor refuted: there is no valid collateral."
	case r.ExitCode == status.Unexpected:
		return "Verified, but not what was expected."
	case !r.OK:
		return "Not verified."
	case r.TrustRootIsIntel:
		return "Verified: these keys were made in a TDX trust domain."
	default:
		return "Verified: these keys were made where the trust root above says; it is not Intel's, so no hardware vouches for it."
	}
}

func (r *Report) writeClaims(p *terminal.Printer) {
	c := r.Claims
	for _, f := range []struct{ name, value string }{
		{"MRTD", c.MRTD},
		{"RTMR0", c.RTMR0},
		{"RTMR1", c.RTMR1},
		{"RTMR2", c.RTMR2},
		{"RTMR3", c.RTMR3},
		{"device id", c.DeviceID},
		{"app id", c.AppID},
		{"compose hash", c.ComposeHash},
		{"OS image hash", c.OSImageHash},
		{"CA public key", c.CAPublic},
		{"secp256k1 public key", c.K256Public},
	} {
		if f.value != "" {
			p.Marked(terminal.None, f.name, nameWidth, f.value)
		}
	}
}

package demo

import (
	"fmt"
	"strings"
)

// try is one command to try.
type try struct {
	What    string `json:"what"`
	Command string `json:"command"`
}

func (d *demo) tries() []try {
	ca, td := quote(d.path(certsDir, caFile)), quote(d.path(tdDir))
	host := fmt.Sprintf("%s:%d", Domain, d.port.port)
	curl := fmt.Sprintf("curl --cacert %s --resolve %s:127.0.0.1", ca, host)
	trust := fmt.Sprintf("--trust-root %s --collateral %s", quote(d.path(tdDir, rootFile)), td)
	all := []try{
		{"what the KMS says of itself", fmt.Sprintf("%s 'https://%s/prpc/KMS.GetMeta?json'", curl, host)},
		{"the same through Connect", fmt.Sprintf("%s -H 'Content-Type: application/json' -d '{}' https://%s/kms.v1.KMS/GetMeta", curl, host)},
		{"the same through gRPC", fmt.Sprintf("grpcurl -cacert %s -servername %s 127.0.0.1:%d kms.v1.KMS/GetMeta", ca, Domain, d.port.port)},
		{"whether it is ready", fmt.Sprintf("%s https://%s/ready", curl, host)},
		{"verify it, running", fmt.Sprintf("kmsctl verify --url %s %s", d.url(), trust)},
		{"get keys as the application", fmt.Sprintf("kmsctl app key --kms %s --ca-cert %s --app-id %x --compose-hash %x --provider simulator --simulator-dir %s --json", d.url(), ca, appID(), composeHash(appCompose), td)},
		{"verify its key directory", fmt.Sprintf("kmsctl verify --dir %s %s", quote(d.path(certsDir)), trust)},
	}
	if d.seals != nil {
		config := quote(d.path(configFile))
		all = append(all,
			try{"see what seals its keys", "kmsctl seal status --config " + config},
			try{"seal them anew", "kmsctl seal rotate --config " + config},
		)
	}
	return all
}

// quote quotes a word for a shell where it needs that.
func quote(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func (d *demo) sayWhatToTry() error {
	if d.cfg.JSON {
		d.writeJSON(map[string]any{"url": d.url(), "dir": d.dir, "try": d.tries()})
		return nil
	}
	p := d.cfg.Printer
	p.Line("")
	p.Line("The KMS serves %s (%s) until you press Ctrl-C. To try:", d.url(), Domain)
	for _, t := range d.tries() {
		p.Line("")
		p.Line("  # %s", t.What)
		p.Line("  %s", t.Command)
	}
	return p.Err()
}

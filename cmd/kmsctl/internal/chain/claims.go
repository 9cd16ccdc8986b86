package chain

import (
	"encoding/hex"

	"teekms/cmd/kmsctl/internal/subject"
	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
)

// Claims are what verified Evidence proves, bytes in lower-case hex. The names
// are those of expectations (docs/kmsctl.md#expectations). Empty is what there
// is none of.
type Claims struct {
	TEE           string   `json:"tee"`
	MRTD          string   `json:"mrtd"`
	RTMR0         string   `json:"rtmr0"`
	RTMR1         string   `json:"rtmr1"`
	RTMR2         string   `json:"rtmr2"`
	RTMR3         string   `json:"rtmr3"`
	MRConfigID    string   `json:"mr_config_id"`
	MROwner       string   `json:"mr_owner"`
	MROwnerConfig string   `json:"mr_owner_config"`
	MRSeam        string   `json:"mr_seam"`
	ReportData    string   `json:"report_data"`
	FMSPC         string   `json:"fmspc"`
	PPID          string   `json:"ppid"`
	DeviceID      string   `json:"device_id"`
	TCBStatus     string   `json:"tcb_status"`
	PlatformTCB   string   `json:"platform_tcb_status"`
	ModuleTCB     string   `json:"module_tcb_status"`
	QETCB         string   `json:"qe_tcb_status"`
	Advisories    []string `json:"advisories"`
	TrustRoot     string   `json:"trust_root_sha256"`

	// Of the record, once report data bind its keys.
	CAPublic   string `json:"ca_pubkey"`
	K256Public string `json:"k256_pubkey"`

	// Of the event log, once it replays.
	AppID        string `json:"app_id"`
	ComposeHash  string `json:"compose_hash"`
	InstanceID   string `json:"instance_id"`
	OSImageHash  string `json:"os_image_hash"`
	KeyProvider  string `json:"key_provider"`
	MRSystem     string `json:"mr_system"`
	MRAggregated string `json:"mr_aggregated"`

	// Domain are the names in the RPC certificate, once it leads to the root.
	Domain []string `json:"domain"`
}

func newClaims(c *attest.Claims) *Claims {
	h := hex.EncodeToString
	device := c.DeviceID()
	out := &Claims{
		TEE:  c.TEE,
		MRTD: h(c.MRTD[:]), RTMR0: h(c.RTMR[0][:]), RTMR1: h(c.RTMR[1][:]), RTMR2: h(c.RTMR[2][:]), RTMR3: h(c.RTMR[3][:]),
		MRConfigID: h(c.MRConfigID[:]), MROwner: h(c.MROwner[:]), MROwnerConfig: h(c.MROwnerConfig[:]), MRSeam: h(c.MRSeam[:]),
		ReportData: h(c.ReportData[:]), FMSPC: h(c.FMSPC), PPID: h(c.PPID), DeviceID: h(device[:]),
		TCBStatus: string(c.TCB), PlatformTCB: string(c.PlatformTCB), ModuleTCB: string(c.ModuleTCB), QETCB: string(c.QETCB),
		Advisories: c.Advisories, TrustRoot: h(c.TrustRoot[:]),
		Domain: []string{},
	}
	if out.Advisories == nil {
		out.Advisories = []string{}
	}
	return out
}

// addIdentity adds what the event log, which must replay, says of the
// application.
func (c *Claims) addIdentity(verified *attest.Claims, log eventlog.Log) error {
	id, err := log.Identity()
	if err != nil {
		return err
	}
	h := hex.EncodeToString
	c.AppID, c.ComposeHash, c.InstanceID, c.OSImageHash = h(id.AppID), h(id.ComposeHash), h(id.InstanceID), h(id.OSImageHash)
	c.KeyProvider = string(id.KeyProvider)
	system, aggregated := verified.MRSystem(id.KeyProvider), verified.MRAggregated(verified.RTMR[3])
	c.MRSystem, c.MRAggregated = h(system[:]), h(aggregated[:])
	return nil
}

func (c *Claims) addKeys(s *subject.Subject) {
	c.CAPublic, c.K256Public = hex.EncodeToString(s.Record.CAPublic), hex.EncodeToString(s.Record.K256Public)
}

// values returns the claims that can be expected, by name.
func (c *Claims) values() map[string][]string {
	values := map[string][]string{"domain": c.Domain}
	for name, v := range map[string]string{
		"mrtd": c.MRTD, "rtmr0": c.RTMR0, "rtmr1": c.RTMR1, "rtmr2": c.RTMR2, "rtmr3": c.RTMR3,
		"mr_config_id": c.MRConfigID, "mr_owner": c.MROwner, "mr_owner_config": c.MROwnerConfig, "mr_seam": c.MRSeam,
		"device_id": c.DeviceID, "fmspc": c.FMSPC,
		"app_id": c.AppID, "compose_hash": c.ComposeHash, "instance_id": c.InstanceID, "os_image_hash": c.OSImageHash,
		"mr_system": c.MRSystem, "mr_aggregated": c.MRAggregated,
		"ca_pubkey": c.CAPublic, "k256_pubkey": c.K256Public, "trust_root_sha256": c.TrustRoot,
	} {
		if v != "" {
			values[name] = []string{v}
		}
	}
	return values
}

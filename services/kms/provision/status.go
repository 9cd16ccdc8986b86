package provision

import (
	"context"

	provisionv1 "teekms/gen/provision/v1"
	"teekms/internal/storage"
)

// warnOpen is shown as long as nothing is asked of who configures.
const warnOpen = "Anybody who can connect may configure and start this KMS."

// GetStatus tells what has been received and what is missing.
func (s *Server) GetStatus(ctx context.Context, _ *provisionv1.GetStatusRequest) (*provisionv1.GetStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := &provisionv1.GetStatusResponse{
		Phase: s.phase.String(), WhoMayConfigure: s.means(), Attested: s.cfg.Attested,
		Pkcs12Bytes: uint32(s.now.PKCS12.Len()), Pkcs12Password: s.worded && s.phase != started,
	}
	if s.phase == started {
		return status, nil
	}
	if s.now.Database.Type == "" {
		status.Missing = []string{"database"}
	}
	if s.now.PKCS12.Len() == 0 {
		status.Warnings = append(status.Warnings, warnNoPKCS12)
	}
	if s.means() == byAnyone {
		status.Warnings = append(status.Warnings, warnOpen)
	}
	if callerOf(ctx).trusted {
		status.LastError = s.failed
		status.Database = s.describe()
		if err := s.now.Database.Validate(); err != nil && status.Database != nil {
			status.Warnings = append(status.Warnings, "Start will refuse the database: "+hidden(err, secretsOf(&s.now)).Error()+".")
		}
	}
	return status, nil
}

// describe says of the database what is no secret.
func (s *Server) describe() *provisionv1.DatabaseStatus {
	db := &s.now.Database
	if db.Type == "" {
		return nil
	}
	out := &provisionv1.DatabaseStatus{Type: string(db.Type), Source: "configured"}
	if s.posted {
		out.Source = "posted"
	}
	if db.Type == storage.SQLite || db.Type == storage.SQLiteEncrypted {
		out.Path = db.Path
		return out
	}
	server := *db
	server.InsecurePlaintext = true // to be shown, not to be connected to
	if endpoint, err := server.Endpoint(); err == nil {
		out.Host, out.Name, out.Tls = endpoint.Host, endpoint.Database, endpoint.TLS
	}
	return out
}

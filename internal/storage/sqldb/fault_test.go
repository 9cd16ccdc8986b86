package sqldb_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/ncruces/go-sqlite3"

	"teekms/internal/storage"
	"teekms/internal/storage/sqldb"
)

func TestFaults(t *testing.T) {
	// What drivers add to an error, and nobody is to see.
	const secret = "hunter2secret"
	pg := func(code string) error { return &pgconn.PgError{Code: code, Message: secret, Detail: secret} }
	my := func(number uint16) error { return &mysql.MySQLError{Number: number, Message: secret} }
	op := func(err error) error { return &net.OpError{Op: "dial", Net: secret, Err: err} }
	everywhere := []storage.Type{storage.SQLite, storage.PostgreSQL, storage.MySQL}
	servers := everywhere[1:]
	only := func(t storage.Type) []storage.Type { return []storage.Type{t} }
	tests := []struct {
		of   []storage.Type
		err  error
		want string
		is   error
	}{
		{everywhere, context.DeadlineExceeded, "the database gave no answer within 10s", storage.ErrUnavailable},
		{everywhere, os.ErrDeadlineExceeded, "the database gave no answer within 10s", storage.ErrUnavailable},
		{only(storage.PostgreSQL), errors.New(secret), "the database does not answer as PostgreSQL does", nil},
		{everywhere, &url.Error{Op: "parse", URL: secret, Err: errors.New(secret)}, "the database does not answer as", nil},
		{everywhere, errors.New("sql: database is closed"), "the database was closed", nil},
		{servers, io.ErrUnexpectedEOF, "the connection to the database was lost", storage.ErrUnavailable},
		{servers, op(syscall.ECONNRESET), "the connection to the database was lost", storage.ErrUnavailable},
		{servers, op(syscall.ECONNREFUSED), "the database server refused the connection: nothing listens there", storage.ErrUnavailable},
		{servers, op(syscall.EHOSTUNREACH), "the database server cannot be reached", storage.ErrUnavailable},
		{servers, &net.DNSError{Name: secret, IsNotFound: true}, "the database server's name is not known", storage.ErrUnavailable},
		{servers, &net.DNSError{Name: secret, IsTimeout: true}, "the database server's name was not resolved within 10s", storage.ErrUnavailable},
		{servers, x509.UnknownAuthorityError{}, "it was not issued by a known authority", nil},
		{servers, x509.HostnameError{Host: secret, Certificate: new(x509.Certificate)}, "it is for another host", nil},
		{servers, x509.CertificateInvalidError{Reason: x509.Expired, Detail: secret}, "it has expired or is not yet valid", nil},
		{servers, x509.CertificateInvalidError{Reason: x509.NotAuthorizedToSign, Detail: secret}, "the server's certificate is not trusted", nil},
		{servers, &tls.CertificateVerificationError{Err: errors.New(secret)}, "the server's certificate is not trusted", nil},
		{servers, tls.RecordHeaderError{Msg: secret}, "the server does not answer with TLS", nil},
		{servers, tls.AlertError(40), "the server ended the TLS handshake (alert 40)", nil},
		{only(storage.PostgreSQL), pg("28P01"), "the server refused the user or the password (SQLSTATE 28P01)", nil},
		{only(storage.PostgreSQL), pg("28000"), "the server does not let this user in from here", nil},
		{only(storage.PostgreSQL), pg("3D000"), "the server has no database of this name", nil},
		{only(storage.PostgreSQL), pg("42501"), "the user lacks a permission", nil},
		{only(storage.PostgreSQL), pg("25006"), "read-only", nil},
		{only(storage.PostgreSQL), pg("53100"), "the disk of the database is full", nil},
		{only(storage.PostgreSQL), pg("53300"), "too many connections", storage.ErrUnavailable},
		{only(storage.PostgreSQL), pg("57P03"), "the server is starting or stopping", storage.ErrUnavailable},
		{only(storage.PostgreSQL), pg("08006"), "the connection to the database was lost", storage.ErrUnavailable},
		{only(storage.PostgreSQL), pg("40001"), "another transaction had to go first", storage.ErrUnavailable},
		{only(storage.PostgreSQL), pg("57014"), "the server did not finish in time", storage.ErrUnavailable},
		{only(storage.PostgreSQL), pg("XX001"), "its data are damaged", nil},
		{only(storage.PostgreSQL), pg("22000"), "the server refused a statement (SQLSTATE 22000)", nil},
		{only(storage.PostgreSQL), pg(secret), "the server refused a statement", nil},
		{only(storage.PostgreSQL), errors.New("server refused TLS connection " + secret), "the server does not offer TLS", nil},
		{only(storage.PostgreSQL), errors.New(`authentication method "password" ` + secret), "in a way that is not safe without TLS", nil},
		{only(storage.PostgreSQL), pgconn.ErrConnClosed, "the connection to the database was lost", storage.ErrUnavailable},
		{only(storage.PostgreSQL), pgconn.NewParseConfigError(secret, secret, errors.New(secret)), "the database does not answer as PostgreSQL does", nil},
		{only(storage.MySQL), my(1045), "the server refused the user or the password (error 1045)", nil},
		{only(storage.MySQL), my(1130), "the server does not let anybody in from this machine", nil},
		{only(storage.MySQL), my(1044), "the server has no database of this name, or this user may not use it", nil},
		{only(storage.MySQL), my(1049), "the server has no database of this name", nil},
		{only(storage.MySQL), my(1142), "the user lacks a permission", nil},
		{only(storage.MySQL), my(1290), "read-only", nil},
		{only(storage.MySQL), my(1021), "the disk of the database is full", nil},
		{only(storage.MySQL), my(1040), "too many connections", storage.ErrUnavailable},
		{only(storage.MySQL), my(1053), "the server is stopping", storage.ErrUnavailable},
		{only(storage.MySQL), my(1213), "another transaction had to go first", storage.ErrUnavailable},
		{only(storage.MySQL), my(1317), "the server did not finish in time", storage.ErrUnavailable},
		{only(storage.MySQL), my(1153), "max_allowed_packet is too small", nil},
		{only(storage.MySQL), my(3159), "the server demands TLS", nil},
		{only(storage.MySQL), my(1), "the server refused a statement (error 1)", nil},
		{only(storage.MySQL), mysql.ErrNoTLS, "the server does not offer TLS", nil},
		{only(storage.MySQL), mysql.ErrInvalidConn, "the connection to the database was lost", storage.ErrUnavailable},
		{only(storage.MySQL), mysql.ErrMalformPkt, "the server does not answer as MySQL does", nil},
		{only(storage.MySQL), mysql.ErrCleartextPassword, "in a way that is not supported", nil},
		{only(storage.SQLite), sqlite3.FULL, "the disk of the database is full (SQLite error 13)", nil},
		{only(storage.SQLite), sqlite3.IOERR_WRITE, "writing to the database's disk failed: it may be full (SQLite error 778)", nil},
		{only(storage.SQLite), sqlite3.NOTADB, "wrong key, or not the database of a KMS", storage.ErrWrongKey},
		{only(storage.SQLite), sqlite3.IOERR_BADKEY, "the key of the database has the wrong size", storage.ErrWrongKey},
		{only(storage.SQLite), sqlite3.CORRUPT, "the database was tampered with, or it is damaged", storage.ErrIntegrity},
		{only(storage.SQLite), sqlite3.BUSY, "another process holds the database", storage.ErrUnavailable},
		{only(storage.SQLite), sqlite3.INTERRUPT, "the database did not finish in time", storage.ErrUnavailable},
		{only(storage.SQLite), sqlite3.READONLY_DIRECTORY, "cannot be written", nil},
		{only(storage.SQLite), sqlite3.CANTOPEN, "the database cannot be opened", nil},
		{only(storage.SQLite), sqlite3.IOERR_FSYNC, "reading or writing the database's disk failed (SQLite error 1034)", nil},
		{only(storage.SQLite), sqlite3.MISUSE, "the database refused a statement (SQLite error 21)", nil},
	}
	for _, tt := range tests {
		for _, of := range tt.of {
			t.Run(fmt.Sprintf("%s/%T/%s", of, tt.err, tt.want), func(t *testing.T) {
				// Drivers wrap what they say once more, in more words.
				got := sqldb.Describe(of, fmt.Errorf("%s: %w", secret, tt.err))
				wantError(t, got, tt.want, tt.is)
				if tt.is == nil && errors.Is(got, storage.ErrUnavailable) {
					t.Errorf("error = %v is ErrUnavailable, want one that stays", got)
				}
				if strings.Contains(got.Error(), secret) {
					t.Errorf("error = %v shows what the driver said", got)
				}
				if errors.Is(got, tt.err) {
					t.Errorf("error = %v leads to what the driver said", got)
				}
			})
		}
	}
}

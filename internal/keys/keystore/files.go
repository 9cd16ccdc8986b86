package keystore

import (
	"io/fs"
	"slices"
	"strings"
)

// The files of a key directory, and nothing else is ever left in it.
const (
	rootCACert = "root-ca.crt"
	rootCAKey  = "root-ca.key"
	tempCACert = "tmp-ca.crt"
	tempCAKey  = "tmp-ca.key"
	rpcCert    = "rpc.crt"
	rpcKey     = "rpc.key"
	rootK256   = "root-k256.key"
	infoFile   = "bootstrap-info.json"
)

const (
	// domainFile is where other KMSs keep the domain. It is read, never
	// written.
	domainFile = "rpc-domain"
	// stageDir holds files on their way into the directory.
	stageDir = ".stage"
	// markerFile in the stage says that the stage is whole.
	markerFile = "commit"
)

const (
	dirMode    fs.FileMode = 0o755
	stageMode  fs.FileMode = 0o700
	secretMode fs.FileMode = 0o600
	publicMode fs.FileMode = 0o644
	othersMask fs.FileMode = 0o077

	everybodyWrites fs.FileMode = 0o002
)

const (
	// maxFile bounds a key or certificate file; a certificate with Evidence
	// takes some 30 KiB.
	maxFile = 1 << 20
	// maxInfo bounds bootstrap-info.json: 10 MiB of attestation, in hex.
	maxInfo = 24 << 20
	// maxDomainFile bounds rpc-domain.
	maxDomainFile = 4 << 10
)

// publishOrder lists the files in the order in which they appear in the
// directory: the root keys last, so that whoever looks for them finds all or
// none.
func publishOrder() []string {
	return []string{infoFile, tempCACert, tempCAKey, rpcCert, rpcKey, rootCACert, rootK256, rootCAKey}
}

func isOurs(name string) bool { return slices.Contains(publishOrder(), name) }

func isRootKey(name string) bool { return name == rootCAKey || name == rootK256 }

func modeOf(name string) fs.FileMode {
	if strings.HasSuffix(name, ".key") {
		return secretMode
	}
	return publicMode
}

func limitOf(name string) int64 {
	if name == infoFile {
		return maxInfo
	}
	return maxFile
}

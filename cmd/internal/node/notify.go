package node

import (
	"net"
	"os"
	"strings"

	"go.uber.org/zap"
)

// Notify tells the service manager how far this process is, where one listens
// (sd_notify): "READY=1", "STATUS=TEXT", "STOPPING=1". A service manager that
// does not listen is no failure of a KMS.
func (n *Node) Notify(states ...string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if strings.HasPrefix(name, "@") {
		name = "\x00" + name[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(strings.Join(states, "\n")))
		_ = conn.Close() // a datagram is sent or not
	}
	if err != nil {
		n.Log.Warn("telling the service manager", zap.NamedError("err", err))
	}
}

package session

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/secure"
)

// Magic begins every connection, after TLS where there is TLS. A socket that serves
// several protocols tells them apart by it.
const Magic = "LNCH"

const (
	helloHeader = 12
	maxHello    = 4096
)

// Purposes of a connection.
const (
	purposeSession uint8 = iota
	purposeJoin          // one JoinRequest, one answer
	purposeRenew         // one RenewRequest, one answer
)

// hello is what each side says first: the dialler, then the one that was dialled.
//
//	magic "LNCH" · major u16 · minor u16 · length u16 · zero u16 · body
//
// little-endian; the body is a msgpack helloBody. The header never changes, so that any
// two versions can tell each other what they are.
type hello struct {
	Major, Minor uint16
	Body         helloBody
}

type helloBody struct {
	Build   string
	Purpose uint8
	Cluster string
	Role    uint8
	Name    string
	PID     int
	Clock   int64      // unix ns
	Refused *errs.Wire // from the dialled side: why there will be no session
}

func (c Config) hello(purpose uint8) hello {
	return hello{c.major, wire.ProtocolMinor, helloBody{Build: c.Version, Purpose: purpose, Cluster: c.Cluster,
		Role: uint8(c.Role), Name: c.Name, PID: os.Getpid(), Clock: time.Now().UnixNano()}}
}

func (h hello) append(b []byte) []byte {
	body := wire.Marshal(h.Body)
	b = append(b, Magic...)
	b = binary.LittleEndian.AppendUint16(b, h.Major)
	b = binary.LittleEndian.AppendUint16(b, h.Minor)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(body)))
	b = binary.LittleEndian.AppendUint16(b, 0)
	return append(b, body...)
}

// readHello reads a hello of any major version. The body of another major version may be
// laid out in another way; then as much of it is kept as can be read.
func readHello(r io.Reader) (hello, error) {
	var b [helloHeader]byte
	if _, err := io.ReadFull(r, b[:4]); err != nil {
		return hello{}, err
	}
	if string(b[:4]) != Magic {
		return hello{}, errs.New(errs.Corrupt, "the other side does not speak launcher's protocol: it began with %q", b[:4])
	}
	if _, err := io.ReadFull(r, b[4:]); err != nil {
		return hello{}, noEOF(err)
	}
	h := hello{Major: binary.LittleEndian.Uint16(b[4:]), Minor: binary.LittleEndian.Uint16(b[6:])}
	n := int(binary.LittleEndian.Uint16(b[8:]))
	if n > maxHello {
		return h, errs.New(errs.Corrupt, "a hello of %d bytes, the limit is %d", n, maxHello)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return h, noEOF(err)
	}
	if err := wire.Unmarshal(body, &h.Body); err != nil {
		if h.Major != wire.ProtocolMajor {
			return h, nil
		}
		return h, err
	}
	return h, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// versionError is what both sides say when their protocols differ.
func versionError(mine Config, other hello, who string) error {
	build := other.Body.Build
	if build == "" {
		build = "unknown"
	}
	e := errs.New(errs.Version, "this is launcher %s, which speaks protocol %d.%d; %s is launcher %s, which speaks protocol %d.%d",
		mine.Version, mine.major, wire.ProtocolMinor, who, build, other.Major, other.Minor)
	if other.Major > mine.major {
		return e.Hint("use the newer binary here: launcher %s", build)
	}
	return e.Hint("use launcher %s here, or `launcher down` with it and `launcher up` with this one", build)
}

// greetDial is the dialler's half of the handshake.
func greetDial(conn net.Conn, cfg Config, purpose uint8, who string) (hello, error) {
	if _, err := conn.Write(cfg.hello(purpose).append(nil)); err != nil {
		return hello{}, err
	}
	h, err := readHello(conn)
	switch {
	case err != nil:
		return h, err
	case h.Major != cfg.major:
		return h, versionError(cfg, h, who)
	case h.Body.Refused != nil:
		return h, errs.Wrap(errs.Unknown, h.Body.Refused.FromWire(), "%s refuses", who)
	case cfg.Cluster != "" && h.Body.Cluster != "" && h.Body.Cluster != cfg.Cluster:
		return h, errs.New(errs.Permission, "%s belongs to cluster %s, not %s", who, h.Body.Cluster, cfg.Cluster)
	}
	return h, nil
}

// greetServe is the other half: it reads the dialler's hello and answers it. check says
// who the peer is once its hello is read; its error is told to the peer.
func greetServe(conn net.Conn, cfg Config, check func(hello) error) (hello, error) {
	h, err := readHello(conn)
	if err != nil && errs.KindOf(err) != errs.Corrupt {
		return h, err
	}
	if err == nil {
		switch {
		case h.Major != cfg.major:
			err = versionError(cfg, h, "the other side")
		case cfg.Cluster != "" && h.Body.Cluster != "" && h.Body.Cluster != cfg.Cluster:
			err = errs.New(errs.Permission, "this is cluster %s, not %s", cfg.Cluster, h.Body.Cluster)
		default:
			err = check(h)
		}
	} else if h.Major == 0 { // not even our magic: say nothing
		return h, err
	}
	a := cfg.hello(h.Body.Purpose)
	if err != nil {
		a.Body.Refused = errs.ToWire(err)
		refuse(conn, a)
		return h, err
	}
	_, err = conn.Write(a.append(nil))
	return h, err
}

// refuse says why, and gives the other side a moment to read it before the connection is
// closed under it.
func refuse(conn net.Conn, a hello) {
	if _, err := conn.Write(a.append(nil)); err != nil {
		return
	}
	linger(conn, time.Second)
}

// linger ends our half and waits, for at most d, until the other side ends its own.
// Closing at once would reset the connection when something unread is in it, and a
// reset may overtake what was written.
func linger(conn net.Conn, d time.Duration) {
	cw, ok := conn.(interface{ CloseWrite() error })
	if !ok || cw.CloseWrite() != nil {
		return
	}
	conn.SetReadDeadline(time.Now().Add(d))
	io.CopyN(io.Discard, conn, 64<<10)
}

func (h hello) peer(conn net.Conn) Peer {
	p := Peer{Role: secure.Role(h.Body.Role), Name: h.Body.Name, Version: h.Body.Build, PID: h.Body.PID, Minor: h.Minor,
		Clock: time.Duration(h.Body.Clock - time.Now().UnixNano())}
	if a := conn.RemoteAddr(); a != nil {
		p.Addr = a.String()
	}
	return p
}

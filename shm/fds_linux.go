package shm

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
)

// MaxFDs bounds the descriptors of one message; the kernel's own limit is 253.
const MaxFDs = 64

// SendFDs writes all of b to conn; the descriptors travel with its first byte, so b must
// not be empty. The caller keeps its own copies.
func SendFDs(conn *net.UnixConn, b []byte, files ...*os.File) error {
	if len(b) == 0 || len(files) > MaxFDs {
		return errs.New(errs.Invalid, "passing %d descriptors with %d bytes", len(files), len(b))
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fd, err := fdOf(f)
			if err != nil {
				return errs.Wrap(errs.Invalid, err, "passing descriptor %d", i)
			}
			fds[i] = fd
		}
		oob = unix.UnixRights(fds...)
		defer runtime.KeepAlive(files)
	}
	n, _, err := conn.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = conn.Write(b[n:])
	}
	if err != nil {
		return errs.Wrap(errs.Lost, err, "passing descriptors")
	}
	return nil
}

// fdOf is the number of f's descriptor. Unlike f.Fd it leaves the blocking mode alone,
// which all holders of the descriptor share.
func fdOf(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	err = raw.Control(func(n uintptr) { fd = int(n) })
	return fd, err
}

// RecvFDs reads up to len(b) bytes and the descriptors that came with them. At the end
// of the stream it gives io.EOF. Descriptors are close-on-exec and belong to the caller
// also when an error is returned beside them; names label them (for messages only).
func RecvFDs(conn *net.UnixConn, b []byte) (n int, files []*os.File, err error) {
	oob := make([]byte, unix.CmsgSpace(MaxFDs*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(b, oob)
	if errors.Is(err, io.EOF) {
		return 0, nil, io.EOF
	}
	if err != nil {
		return n, nil, err
	}
	files, err = ParseFDs(oob[:oobn])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errs.New(errs.Exhausted, "more descriptors were passed than this process may open").Hint("raise the limit of open files (ulimit -n)")
	}
	if err == nil && n == 0 && len(b) > 0 {
		err = io.EOF
	}
	return n, files, err
}

// ParseFDs takes the descriptors out of the control data of a received message. It
// serves those who read with their own recvmsg.
func ParseFDs(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "control data of a unix socket")
	}
	for _, m := range msgs {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, perr := unix.ParseUnixRights(&m)
		if perr != nil {
			err = errors.Join(err, perr)
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("passed-%d", fd)))
		}
	}
	return files, err
}

// PeerUID is the user of the process at the other end of a unix socket, as of its
// connect.
func PeerUID(conn *net.UnixConn) (uid, pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, 0, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return -1, 0, err
	}
	if cerr != nil {
		return -1, 0, cerr
	}
	return int(cred.Uid), int(cred.Pid), nil
}

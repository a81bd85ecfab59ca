package collectives

import (
	"errors"

	"golang.org/x/sys/unix"
)

// alive reports whether a process of that number exists.
func alive(pid uint32) bool { return !errors.Is(unix.Kill(int(pid), 0), unix.ESRCH) }

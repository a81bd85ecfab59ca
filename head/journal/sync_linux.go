package journal

import (
	"os"

	"golang.org/x/sys/unix"
)

// dataSync makes what was written to f safe, its length included.
func dataSync(f file) error {
	o, ok := f.(*os.File)
	if !ok {
		return f.Sync()
	}
	for {
		err := unix.Fdatasync(int(o.Fd()))
		if err != unix.EINTR {
			return err
		}
	}
}

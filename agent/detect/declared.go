package detect

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"

	"launcher/wire"
)

// DeclaredGPU is number index of a machine's GPUs, where a pool says that there are such
// and the driver shows none. It has the same UUID in every cluster on the machine, so
// that it can be kept from the others like any GPU. One that a batch system granted is of a
// grant: its number may mean another device in the next one.
func DeclaredGPU(root, grant string, index int) wire.GPU {
	machine := cmp.Or(strings.TrimSpace(read(root, "/etc/machine-id")), Hostname())
	h := sha256.Sum256([]byte("launcher declared GPU\x00" + machine + "\x00" + grant + strconv.Itoa(index)))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80 // a UUID of the free form, version 8
	name := "declared"
	if grant != "" {
		name = "granted"
	}
	return wire.GPU{UUID: fmt.Sprintf("GPU-%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16]), Name: name, Index: int32(index), Declared: true}
}

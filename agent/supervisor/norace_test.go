//go:build !race

package supervisor_test

import "time"

// goneBound is the promise: everything below a dead supervisor is gone in a second.
const goneBound = time.Second

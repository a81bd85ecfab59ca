package supervisor_test

import (
	"os"
	"testing"

	"launcher/agent/supervisor/supervisortest"
)

func TestMain(m *testing.M) {
	supervisortest.Main(supervisortest.Roles{})
	os.Exit(m.Run())
}

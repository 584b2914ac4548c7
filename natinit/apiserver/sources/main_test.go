package sources

import (
	"testing"

	"github.com/firsthop/firsthop/natinit/apiserver/apitest"
)

func TestMain(m *testing.M) { apitest.Main(m) }

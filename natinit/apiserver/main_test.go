package apiserver

import (
	"testing"

	"github.com/firsthop/firsthop/test/apitest"
)

func TestMain(m *testing.M) { apitest.Main(m) }

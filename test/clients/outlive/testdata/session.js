// Asks one line after the other until its input ends: udp-once|udp-loose|tcp HOST PORT. A report for each, as JSON.
const dgram = require('dgram');
const net = require('net');

const [kind, host, portText] = process.argv.slice(-3);
const port = Number(portText);
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));

const tell = (report) => console.log(JSON.stringify(report));
let n = 0;

function tcp() {
  const report = {};
  let text = '';
  const conn = net.connect({ host, port, timeout: 10000 });
  const done = (error) => {
    if (error) report.error = error;
    conn.destroy();
    tell(report);
    setTimeout(tcp, 20);
  };
  let over = false;
  const once = (error) => { if (!over) { over = true; done(error); } };
  conn.on('connect', () => {
    report.peer = `${conn.remoteAddress}:${conn.remotePort}`;
    conn.write(`node-${n++}\n`);
  });
  conn.on('data', (data) => {
    text += data;
    if (text.endsWith('\n')) { report.reply = text; once(); }
  });
  conn.on('timeout', () => once('recv timeout'));
  conn.on('error', (e) => once(`${e.syscall} ${e.code}`));
}

function udp() {
  const sock = dgram.createSocket('udp4');
  let waiting = null;
  const finish = (report) => {
    if (!waiting) return;
    clearTimeout(waiting.timer);
    waiting = null;
    tell(report);
    setTimeout(ask, 20);
  };
  const peer = () => {
    const a = sock.remoteAddress();
    return `${a.address}:${a.port}`;
  };
  function ask() {
    const report = kind === 'udp-once' ? { peer: peer() } : {};
    waiting = { report, timer: setTimeout(() => finish({ ...report, error: 'recv timeout' }), 1000) };
    const sent = (e) => { if (e) finish({ ...report, error: `${e.syscall} ${e.code}` }); };
    if (kind === 'udp-once') sock.send(`node-${n++}\n`, sent);
    else sock.send(`node-${n++}\n`, port, host, sent);
  }
  sock.on('message', (data, from) => waiting && finish({ ...waiting.report, reply: data.toString(), from: `${from.address}:${from.port}` }));
  sock.on('error', (e) => finish({ error: `${e.syscall} ${e.code}` }));
  if (kind === 'udp-once') sock.connect(port, host, ask);
  else sock.bind(0, ask);
}

kind === 'tcp' ? tcp() : udp();

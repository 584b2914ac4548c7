import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.DatagramPacket;
import java.net.DatagramSocket;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.nio.charset.StandardCharsets;

/** Asks one line after the other until its input ends: udp-once|udp-loose|tcp HOST PORT. A report for each, as JSON. */
class Session {
    static volatile boolean ended;

    static String quote(String s) {
        return '"' + s.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", "\\n") + '"';
    }

    static String address(InetSocketAddress a) {
        return a.getAddress().getHostAddress() + ":" + a.getPort();
    }

    public static void main(String[] args) throws Exception {
        String kind = args[0];
        InetSocketAddress target = new InetSocketAddress(args[1], Integer.parseInt(args[2]));
        Thread end = new Thread(() -> {
            try {
                while (System.in.read() >= 0) { }
            } catch (Exception e) { }
            ended = true;
        });
        end.setDaemon(true);
        end.start();
        DatagramSocket udp = null;
        if (!kind.equals("tcp")) {
            udp = new DatagramSocket();
            udp.setSoTimeout(1000);
            if (kind.equals("udp-once")) udp.connect(target);
        }
        for (int n = 0; !ended; n++) {
            StringBuilder out = new StringBuilder("{");
            String line = "java-" + n + "\n";
            try {
                if (udp == null) {
                    try (Socket s = new Socket()) {
                        s.connect(target, 10000);
                        s.setSoTimeout(10000);
                        out.append("\"peer\":").append(quote(address((InetSocketAddress) s.getRemoteSocketAddress()))).append(',');
                        s.getOutputStream().write(line.getBytes(StandardCharsets.UTF_8));
                        String reply = new BufferedReader(new InputStreamReader(s.getInputStream())).readLine();
                        out.append("\"reply\":").append(quote(reply == null ? "" : reply));
                    }
                } else {
                    byte[] data = line.getBytes(StandardCharsets.UTF_8);
                    udp.send(new DatagramPacket(data, data.length, target));
                    DatagramPacket in = new DatagramPacket(new byte[65536], 65536);
                    udp.receive(in);
                    out.append("\"from\":").append(quote(address((InetSocketAddress) in.getSocketAddress())));
                    out.append(",\"reply\":").append(quote(new String(in.getData(), 0, in.getLength(), StandardCharsets.UTF_8)));
                }
            } catch (SocketTimeoutException e) {
                out.setLength(1);
                out.append("\"error\":\"recv timeout\"");
            } catch (Exception e) {
                out.setLength(1);
                out.append("\"error\":").append(quote(e.toString()));
            }
            System.out.println(out.append('}'));
            System.out.flush();
            Thread.sleep(20);
        }
    }
}

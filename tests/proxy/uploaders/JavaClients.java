// Uploads with Java's two clients: prints a line `CLIENT MODE SIZE STATUS` for each. Arguments: URL SIZE...
import java.io.IOException;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.SecureRandom;
import java.security.cert.X509Certificate;
import javax.net.ssl.HttpsURLConnection;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManager;
import javax.net.ssl.X509TrustManager;

public class JavaClients {
  static final class TrustAll implements X509TrustManager {
    public void checkClientTrusted(X509Certificate[] chain, String type) {}
    public void checkServerTrusted(X509Certificate[] chain, String type) {}
    public X509Certificate[] getAcceptedIssuers() { return new X509Certificate[0]; }
  }

  static String withConnection(String url, byte[] body, boolean streamed, boolean close) {
    try {
      HttpURLConnection asking = (HttpURLConnection) URI.create(url).toURL().openConnection();
      asking.setRequestMethod("POST");
      asking.setDoOutput(true);
      if (streamed) asking.setFixedLengthStreamingMode(body.length);
      if (close) asking.setRequestProperty("Connection", "close");
      try (OutputStream out = asking.getOutputStream()) { out.write(body); }
      return String.valueOf(asking.getResponseCode());
    } catch (IOException error) { return error.toString().replace(' ', '_'); }
  }

  static String withClient(HttpClient client, String url, byte[] body) {
    try {
      HttpRequest request = HttpRequest.newBuilder(URI.create(url))
          .POST(HttpRequest.BodyPublishers.ofByteArray(body)).build();
      return String.valueOf(client.send(request, HttpResponse.BodyHandlers.ofString()).statusCode());
    } catch (Exception error) { return error.toString().replace(' ', '_'); }
  }

  public static void main(String[] arguments) throws Exception {
    SSLContext context = SSLContext.getInstance("TLS");
    context.init(null, new TrustManager[] {new TrustAll()}, new SecureRandom());
    HttpsURLConnection.setDefaultSSLSocketFactory(context.getSocketFactory());
    HttpsURLConnection.setDefaultHostnameVerifier((name, session) -> true);
    System.setProperty("jdk.internal.httpclient.disableHostnameVerification", "true");
    HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).sslContext(context).build();
    for (int at = 1; at < arguments.length; at++) {
      String url = arguments[0];
      byte[] body = new byte[Integer.parseInt(arguments[at])];
      System.out.println("java-url keep-alive " + body.length + " " + withConnection(url, body, false, false));
      System.out.println("java-url streamed " + body.length + " " + withConnection(url, body, true, false));
      System.out.println("java-url close " + body.length + " " + withConnection(url, body, true, true));
      System.out.println("java-http keep-alive " + body.length + " " + withClient(client, url, body));
    }
  }
}

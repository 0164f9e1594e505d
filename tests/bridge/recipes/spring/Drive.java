import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.Arrays;
import java.util.stream.Collectors;
import org.postgresql.ds.PGSimpleDataSource;
import org.postgresql.util.DriverInfo;
import org.springframework.core.SpringVersion;
import org.springframework.jdbc.core.JdbcTemplate;
import org.springframework.jdbc.datasource.DataSourceTransactionManager;
import org.springframework.transaction.support.TransactionTemplate;

/** Does with the code of the page what it is told, a line at a time. */
public class Drive {
    public static void main(String[] arguments) throws Exception {
        URI uri = URI.create(System.getenv("DATABASE_URL"));
        PGSimpleDataSource source = new PGSimpleDataSource();
        source.setUrl("jdbc:postgresql://" + uri.getHost() + ":" + uri.getPort() + uri.getPath());
        source.setUser(uri.getUserInfo());
        JdbcTemplate jdbc = new JdbcTemplate(source);
        jdbc.execute(new String(Files.readAllBytes(Paths.get("schema.sql")), UTF_8));
        DataSourceTransactionManager manager = new DataSourceTransactionManager(source);
        Shop shop = new Shop(jdbc, new TransactionTemplate(manager));
        StreamAccess access = new StreamAccess(jdbc);
        String spring = SpringVersion.getVersion().replace(".RELEASE", "");
        System.out.println("Spring " + spring + ", PostgreSQL JDBC " + DriverInfo.DRIVER_VERSION);
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            System.out.println(answer(shop, access, line.split(" ", 3)));
        }
    }

    private static Object answer(Shop shop, StreamAccess access, String[] words) throws Exception {
        switch (words[0]) {
            case "order":
                try {
                    return shop.placeOrder(Long.parseLong(words[1]), words[2]);
                } catch (RuntimeException error) {
                    Throwable cause = error;
                    while (cause.getCause() != null) {
                        cause = cause.getCause();
                    }
                    return "refused: " + cause.getMessage().replace('\n', ' ');
                }
            case "announce":
                shop.announce(
                        Arrays.stream(words[1].split(","))
                                .map(Long::valueOf)
                                .collect(Collectors.toList()),
                        words[2]);
                return "done";
            case "token":
                return access.token(Long.parseLong(words[1]));
            case "ticket":
                return access.ticket(Long.parseLong(words[1]));
            case "logout":
                access.endStreams(Long.parseLong(words[1]));
                return "done";
            default:
                throw new IllegalArgumentException(words[0]);
        }
    }
}

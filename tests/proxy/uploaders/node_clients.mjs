// Uploads with Node's clients: prints a line `CLIENT MODE SIZE STATUS` for each. Arguments: URL SIZE...
import http from 'node:http';
import https from 'node:https';

const [url, ...sizes] = process.argv.slice(2);
const library = url.startsWith('https') ? https : http;

function withHttp(body, headers, agent) {
  return new Promise((resolve) => {
    const request = library.request(url, {method: 'POST', headers, agent, rejectUnauthorized: false}, (response) => {
      response.resume().on('end', () => resolve(response.statusCode));
    });
    request.on('error', (error) => resolve(error.code || error.message));
    if (headers.Expect) {
      request.on('continue', () => request.end(body));
      request.flushHeaders();
      request.on('response', () => request.destroy());
    } else request.end(body);
  });
}

async function withFetch(body) {
  try {
    const response = await fetch(url, {method: 'POST', body});
    await response.text();
    return response.status;
  } catch (error) { return (error.cause && error.cause.code) || error.message; }
}

for (const size of sizes.map(Number)) {
  const body = Buffer.alloc(size);
  const sized = {'Content-Length': size};
  const agent = new library.Agent({keepAlive: true});
  console.log('node-fetch keep-alive', size, await withFetch(body));
  console.log('node-http keep-alive', size, await withHttp(body, sized, agent));
  console.log('node-http close', size, await withHttp(body, {...sized, Connection: 'close'}, false));
  console.log('node-http chunked', size, await withHttp(body, {'Transfer-Encoding': 'chunked'}, agent));
  console.log('node-http expect', size, await withHttp(body, {...sized, Expect: '100-continue'}, agent));
  agent.destroy();
}
process.exit(0);

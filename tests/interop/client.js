"use strict";
// A client of all services in the folder of proto files: `node client.js <address> <folder>`.
// Each line of input is a call, {"service", "method", "requests": [...]}. Each line of output is its
// outcome, {"responses": [...]} or {"status", "message"}.

const fs = require("node:fs");
const path = require("node:path");
const readline = require("node:readline");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const PACKAGE = "coupon_service/v1";
const DEADLINE_MS = 30_000;

const [address, folder] = process.argv.slice(2);
const files = fs.readdirSync(path.join(folder, PACKAGE)).map((name) => `${PACKAGE}/${name}`);
const options = { includeDirs: [folder], longs: String, enums: String };
const services = grpc.loadPackageDefinition(loader.loadSync(files, options)).coupon_service.v1;
const clients = new Map();

function clientOf(service) {
  if (!clients.has(service)) {
    clients.set(service, new services[service](address, grpc.credentials.createInsecure()));
  }
  return clients.get(service);
}

function answerTo({ service, method, requests }) {
  const client = clientOf(service);
  const { requestStream, responseStream } = services[service].service[method];
  const deadline = { deadline: Date.now() + DEADLINE_MS };
  return new Promise((resolve, reject) => {
    const responses = [];
    const done = (error, response) => (error ? reject(error) : resolve([response]));
    let call;
    if (requestStream) {
      call = responseStream ? client[method](deadline) : client[method](deadline, done);
      requests.forEach((request) => call.write(request));
      call.end();
    } else {
      call = client[method](requests[0], deadline, responseStream ? undefined : done);
    }
    if (responseStream) {
      call.on("data", (response) => responses.push(response));
      call.on("error", reject);
      call.on("end", () => resolve(responses));
    }
  });
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    let outcome;
    try {
      outcome = { responses: await answerTo(JSON.parse(line)) };
    } catch (error) {
      outcome = { status: grpc.status[error.code] ?? "UNKNOWN", message: error.message };
    }
    process.stdout.write(`${JSON.stringify(outcome)}\n`);
  }
  clients.forEach((client) => client.close());
}

main();

#!/usr/bin/env node
// A minimal commander: moves a VM by a signed command over MQTT. It uses nothing of Godwit, so copy it into a system of
// your own (npm package: mqtt). docs/reference/mqtt.md describes topics, commands and signatures.
//
//   godwit mqtt keygen --name noc-1          # prints what to add to mqtt.commandKeys of gateway.yaml
//   MQTT_URL=mqtt://127.0.0.1:1883 MQTT_USER=noc MQTT_PASSWORD=... \
//     node examples/mqtt-commander.mjs command-noc-1.key web-1 hamburg-1
//
// Enters: a key file, a VM, a target site. Leaves: the gateway's reply on stdout; exit code 0 if it is accepted.
import { createPrivateKey, randomUUID, sign } from 'node:crypto'
import { readFileSync } from 'node:fs'
import mqtt from 'mqtt'

const [keyFile, vm, toSite] = process.argv.slice(2)
if (!keyFile || !vm || !toSite) {
  console.error('usage: mqtt-commander.mjs KEYFILE VM SITE')
  process.exit(2)
}
const { MQTT_URL = 'mqtt://127.0.0.1:1883', MQTT_USER, MQTT_PASSWORD, MQTT_TENANT = 'main' } = process.env
const WAIT_MS = 20_000
const root = `godwit/v1/${MQTT_TENANT}`
const placementTopic = `${root}/vm/${vm}/placement`
// A broker lets each user read the replies of its own name only.
const replyTopic = `${root}/reply/${MQTT_USER ?? 'commander'}`
const commandTopic = `${root}/cmd/handoff/start`

/** JSON with sorted keys and no spaces (RFC 8785): both ends sign the same bytes. */
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  const keys = Object.keys(value).sort()
  return `{${keys.map(key => `${JSON.stringify(key)}:${canonical(value[key])}`).join(',')}}`
}

/** The payload with an Ed25519 signature over its topic, a line feed, and its canonical JSON. */
function signed(topic, payload) {
  const { name, secretKey } = JSON.parse(readFileSync(keyFile, 'utf8'))
  // PKCS #8: this header, then the 32 bytes of the key.
  const der = Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), Buffer.from(secretKey, 'base64')])
  const key = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' })
  const value = sign(null, Buffer.from(`${topic}\n${canonical(payload)}`), key).toString('base64')
  return { ...payload, sig: { alg: 'Ed25519', key: name, value } }
}

/** The VM's epoch fences the command: if the VM moves in between, the gateway rejects it with EPOCH_STALE. */
const commandFor = ({ epoch }) => ({
  commandId: randomUUID(),
  vmId: vm,
  toSite,
  expectedEpoch: epoch,
  notAfter: new Date(Date.now() + 30_000).toISOString(),
  replyTo: replyTopic,
  reason: 'moved by the example commander',
})

const client = mqtt.connect(MQTT_URL, { username: MQTT_USER, password: MQTT_PASSWORD, clean: true })
const stop = (code, text) => {
  console[code === 0 ? 'log' : 'error'](text)
  client.end(true, () => process.exit(code))
}
setTimeout(() => stop(1, `no reply within ${WAIT_MS / 1000} s: does a site have '${vm}'?`), WAIT_MS)
client.on('error', error => stop(1, `the broker: ${error.message}`))
client.on('connect', () => client.subscribe([placementTopic, replyTopic], { qos: 1 }))

let sent
client.on('message', (topic, payload) => {
  const message = JSON.parse(payload.toString())
  if (topic === placementTopic && !sent) {
    sent = signed(commandTopic, commandFor(message))
    client.publish(commandTopic, JSON.stringify(sent), { qos: 1, retain: false })
  }
  if (topic === replyTopic && message.commandId === sent?.commandId)
    stop(message.status === 'rejected' ? 1 : 0, JSON.stringify(message, null, 2))
})

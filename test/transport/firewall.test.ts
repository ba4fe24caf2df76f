// The nftables sample of packaging/ in a network namespace of its own: one address begins only so many QUIC handshakes,
// an honest client comes in beside it.
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { loadQuic } from '../../transport/quic-native.ts'
import { assert, suite } from '../support/suite.ts'

const run = promisify(execFile)
const test = suite('transport/firewall', { ms: 60_000 })
const path = (name: string) => fileURLToPath(new URL(`../../${name}`, import.meta.url))
const RULES = path('packaging/godwit-gateway.nft')

/** Why it cannot be tried here. */
async function missing(): Promise<string | false> {
  try {
    loadQuic()
    await run('unshare', ['-n', 'nft', '-c', '-f', RULES])
    return false
  } catch (error) {
    return `QUIC, nft and network namespaces are needed: ${(error as Error).message.split('\n')[0]}`
  }
}

async function begun(count: number, rules: boolean): Promise<number> {
  const node = `"${process.execPath}" "${path('test/support/count-initials.ts')}" ${count}`
  const { stdout } = await run('unshare', ['-n', 'sh', '-c', `ip link set lo up && ${rules ? `nft -f "${RULES}" && ` : ''}${node}`])
  return Number(stdout.trim())
}

test(
  'of 400 first datagrams of one address most are dropped by the rules before the gateway begins a handshake',
  async () => {
    const without = await begun(400, false)
    assert.ok(without > 200, `${without} without the rules`)
    const within = await begun(400, true)
    assert.ok(within >= 80 && within < 150, `${within} with the rules`)
  },
  { skip: await missing() },
)

test.run()

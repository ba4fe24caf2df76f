// The tour of docs/start/tour.md, pasted: each block runs in one bash, in a network of its own, and the VM ends where
// the text states.
import { spawn, spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { labMissing } from '../support/lab.ts'
import { root } from '../support/source-tree.ts'
import { assert, suite } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'

const test = suite('e2e/tour', { ms: 400_000 })
const hasNamespace = spawnSync('unshare', ['--net', 'ip', 'link', 'set', 'lo', 'up'], { timeout: 10_000 }).status === 0
const skip = labMissing() ?? (hasNamespace ? undefined : 'unshare, ip and root are needed: node scripts/setup.js --test')

/** The blocks of the numbered parts, in order; lines of other parts (the simulator) are not part of the tour. */
function blocks(): string[] {
  const text = readFileSync(join(root, 'docs/start/tour.md'), 'utf8')
  const parts = text.split(/^## /m).filter(part => /^\d+\. /.test(part))
  return parts.flatMap(part => [...part.matchAll(/^```sh\n([\s\S]*?)^```/gm)].map(([, block]) => block!))
}

test(
  'the blocks of the tour run one after the other, and the VM moves there and back',
  async () => {
    const all = blocks()
    assert.ok(all.length >= 6, `only ${all.length} blocks`)
    // Job control as in a shell that a person types into; a command that fails ends the script.
    const clean = 'clean() { for job in $(jobs -p); do kill -- -$job; done 2>/dev/null; wait; rm -rf "$TOUR"; }; trap clean EXIT'
    const script = [
      'set -em',
      'ip link set lo up',
      clean,
      ...all.map((block, i) => `echo "== block ${i + 1}"\n${block}`),
      'echo "== end"',
    ].join('\n')
    await using folder = await tempFolder()
    const file = join(folder.path, 'tour.sh')
    await writeFile(file, script)
    const env = { PATH: process.env['PATH'], HOME: folder.path, TMPDIR: folder.path }
    const child = spawn('unshare', ['--net', 'bash', file], { cwd: root, stdio: ['ignore', 'pipe', 'pipe'], env })
    let output = ''
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', text => {
        output += text
      })
    const timer = setTimeout(() => child.kill('SIGTERM'), 380_000)
    const code = await new Promise<number | null>(resolve => child.on('close', resolve))
    clearTimeout(timer)
    assert.is(code, 0, output)
    const after = (block: number) => output.split(`== block ${block}\n`)[1]?.split('\n== ')[0] ?? ''
    const last = output.split('\n== ').find(part => part.includes('"method": "cold"')) ?? ''
    assert.match(last, /"outcome": "completed"/, output)
    assert.match(after(all.length - 1), /AUDIT-DISK blocks=4096 bad=0 writes=[1-9]/, output)
    assert.match(after(all.length - 1), /^the disk is the same$/m, output)
    assert.match(output, /== end\n/)
  },
  { skip },
)

test.run()

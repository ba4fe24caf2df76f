// godwit demo: hands over to cli/demo.ts, with all its words.
import { command } from '../command.ts'

export const demo = command({
  name: 'demo',
  summary: 'move a Linux VM A -> B -> A on this machine, then have a VM follow a user past three sites',
  details:
    'Starts gateways, nodes and emulated links, and proves that neither guest nor user was harmed. ' +
    'With --short only the moves, with --drive only the drive. npm run demo also does the set-up.',
  isPassThrough: true,
  examples: ['npm run demo', 'godwit demo', 'godwit demo --drive'],
  run: async ({ args }) => {
    // The path is a value, so that the command line stands without the demo.
    const file = '../demo.ts'
    const module = (await import(file)) as { demo(args: string[]): Promise<number> }
    return await module.demo(args)
  },
})

// What is under test: the node's agent and the gateway, whole. Imported with ?mutant=NAME it is that mutant (hooks.ts).
export { startNode } from '../../../edge-node/agent.ts'
export { startGateway } from '../../../gateway/gateway.ts'

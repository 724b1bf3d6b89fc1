import { test } from 'node:test';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { WriterCollector } from '../support/writer-collector.ts';

for (const step of ['boot', 'healthy', 'settle']) {
  test(`a target that loses power when its move is at ${step}: the machine runs there again`, {
    skip: fleetNeeds,
  }, async (t) => {
    const collector = await WriterCollector.open(t);
    const fleet = await Fleet.start(t, ['source', 'target']);
    const [source, target] = [fleet.worker('source'), fleet.worker('target')];
    const machine = await fleet.writerMachine(source, collector, { name: 'writer' });
    const history = collector.history('writer');
    await target.kill();
    await target.start({ crashAt: `migrate-in:${step}:after-start-append` });
    const { id: runId } = await source.client.moveMachine(machine.id, { target: target.name });
    await target.crashed();
    const lives = history.incarnations.length;
    await target.powerOff();
    await target.start();
    await history.incarnation(lives);
    await fleet.ended(source, target, runId);
    await history.more(3);
    history.assertSound();
  });
}
